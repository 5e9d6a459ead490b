"""Malicious files run no code, and no path in a file leads out of its folder."""

import ast
import io
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from support.command_line import call, tiny_options
from support.fuzzing import at_most

from ltmsearch.config.recipe import Recipe, load_recipe
from ltmsearch.config.settings import SETTINGS
from ltmsearch.errors import InputError
from ltmsearch.io.files import refuse_links_outward
from ltmsearch.models import create_backbone, load_weights
from ltmsearch.training.options import default_folder

PACKAGE = Path(__file__).resolve().parents[2] / "ltmsearch"
NEVER = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "cPickle"}
"""Libraries that run what they read."""
CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}


@pytest.fixture(scope="module", autouse=True)
def _no_picture() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltmsearch.io.figures._write_png", lambda *_: None)
        yield


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists once code has run."""
    return tmp_path / "code-was-run"


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.chdir(tmp_path)

    def of(*arguments: object) -> tuple[int, str]:
        with at_most(60):
            code, out, error = call(*map(str, arguments), monkeypatch=monkeypatch, capsys=capsys)
        return code, (error or out).strip()

    return of


class TestSource:
    """No line of the package can run what it reads."""

    @staticmethod
    def trees() -> Iterator[tuple[Path, ast.AST]]:
        for path in sorted(PACKAGE.rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))

    def test_nothing_imports_what_unpickles(self) -> None:
        for path, tree in self.trees():
            for node in ast.walk(tree):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {name.partition(".")[0] for name in names} & NEVER, path

    def test_nothing_calls_what_runs_text(self) -> None:
        for path, tree in self.trees():
            for node in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
                called = ast.unparse(node.func)
                given = {word.arg: word.value for word in node.keywords}
                assert called not in CALLS, f"{path}:{node.lineno}"
                assert not called.endswith((".load_pickle", "unsafe_load", "full_load")), f"{path}:{node.lineno}"
                for word in ("shell", "allow_pickle", "trust_remote_code"):
                    assert word not in given, f"{path}:{node.lineno} says {word}="
                if called == "torch.load":
                    assert ast.unparse(given["weights_only"]) == "True", f"{path}:{node.lineno}"

    def test_a_checkpoint_is_read_with_weights_only(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        seen: list[Any] = []
        original = torch.load

        def load(*args: Any, **kwargs: Any) -> Any:
            seen.append(kwargs.get("weights_only"))
            return original(*args, **kwargs)

        net = create_backbone("mobilevit_xxs", num_classes=2)
        torch.save(net.state_dict(), tmp_path / "w.pth")
        monkeypatch.setattr(torch, "load", load)
        load_weights(net, tmp_path / "w.pth")
        assert seen == [True]


class _Bomb:
    """Creates a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.marker}'",)


def as_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({"state_dict": _Bomb(marker)}))


def as_torch(path: Path, marker: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(2)}, "bomb": _Bomb(marker)}, path)


def as_old_torch(path: Path, marker: Path) -> None:
    torch.save({"a": torch.zeros(2), "b": _Bomb(marker)}, path, _use_new_zipfile_serialization=False)


def as_numpy(path: Path, marker: Path) -> None:
    content = io.BytesIO()
    np.savez(content, a=np.array([_Bomb(marker)], dtype=object), allow_pickle=True)
    path.write_bytes(content.getvalue())


def as_zip(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(_Bomb(marker)))
        archive.writestr("archive/version", "3\n")


BOMBS = [as_pickle, as_torch, as_old_torch, as_numpy, as_zip]


def test_bombs_run_when_unpickled(marker: Path, tmp_path: Path) -> None:
    as_pickle(tmp_path / "bomb", marker)
    pickle.loads((tmp_path / "bomb").read_bytes())
    assert marker.exists(), "else the tests below would prove nothing"


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_no_checkpoint_runs_code(bomb: Callable[..., None], marker: Path, tmp_path: Path) -> None:
    net = torch.nn.Linear(2, 2)
    for ending in ("pth", "pt", "pth.tar", "bin", "npz", "safetensors"):
        bomb(tmp_path / f"weights.{ending}", marker)
        with pytest.raises(InputError, match=f"weights.{ending}"):
            load_weights(net, tmp_path / f"weights.{ending}")
        assert not marker.exists()


@pytest.mark.long
@pytest.mark.parametrize("bomb", [as_torch, pytest.param(as_pickle, marks=pytest.mark.slow)])
def test_no_command_runs_code(
    bomb: Callable[..., None], run: Path, images: Path, command: Command, marker: Path, tmp_path: Path
) -> None:
    recipe = next((run / "recipes").glob("*.yaml"))
    file, weights, training = tmp_path / "weights.pth", run / "supernet.safetensors", tmp_path / "training"
    training.mkdir()
    shutil.copy(recipe, training / "recipe.yaml")
    for path in (file, weights, training / "best.safetensors", training / "state.safetensors"):
        bomb(path, marker)
    small = ("--data-dir", images, "--num-classes", 2)
    for asked in (
        ("run", *tiny_options(out=run)),
        ("run", *tiny_options(out=tmp_path / "new"), "--checkpoint", file),
        ("run", *tiny_options(out=tmp_path / "new"), "--resume-from", run),
        ("export", run, "--weights"),
        ("export", training),
        ("export", training, "--checkpoint", file),
        ("train", recipe, "--init", file, "--out", tmp_path / "t", *small),
        ("train", recipe, "--init", run, "--out", tmp_path / "t", *small),
        ("train", recipe, "--resume", "--out", training, *small),
        ("validate", recipe, "--checkpoint", file),
        ("visualize", recipe, "--checkpoint", file, "--out", tmp_path / "v"),
        ("visualize", training / "recipe.yaml", "--out", tmp_path / "v"),
    ):
        code, said = command(*asked)
        assert code == 2, (asked, said)
        assert said.splitlines()[-1].startswith("error: "), said
        assert "Traceback" not in said
        assert not marker.exists(), asked


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system", "!!python/name:os.system"]
)
def test_no_yaml_runs_code(tag: str, run: Path, command: Command, marker: Path, tmp_path: Path) -> None:
    recipe = next((run / "recipes").glob("*.yaml"))
    space = tmp_path / "space.yaml"
    space.write_text("schema_version: 1\nfamily: mobilevit\nkeep_ratios: [1.0, 0.5]\n")
    line = f"\nprovenance_: {tag} [\"touch '{marker}'\"]\n"
    for path in (recipe, run / SETTINGS, space):
        path.write_text(path.read_text() + line)
    for asked in (
        ("train", recipe), ("visualize", recipe), ("front", run), ("run", "--config", run / SETTINGS),
        ("space", "mobilevit_xxs", "--space", space),
    ):  # fmt: skip
        code, said = command(*asked)
        assert code == 2, said
        assert "could not determine a constructor for the tag" in said.splitlines()[-1]
        assert not marker.exists(), asked


class TestNoPathEscapes:
    """Names and paths in files: the user names every path that is written to."""

    @pytest.mark.parametrize(
        "study", ["../../evil", "/etc/evil", "..", ".", "a/b", "a\nb", "", "x" * 5000, {"a": 1}, None]
    )
    def test_a_training_folder_stays_in_trainings(self, study: Any) -> None:
        recipe = Recipe(model="ltm_a", operator="ltm", schedule={}, num_classes=2, img_size=64)
        origins = [{}, *({"study": study, "trial": trial} for trial in ("../1", "/", 3, ".."))]
        for path, origin in product(("a.yaml", "...yaml", "..yaml", "/x/..", ".yaml"), origins):
            folder = default_folder(recipe.changed({"provenance": origin}), Path(path))
            assert folder.parent == Path("trainings")
            assert folder.name not in ("", ".", "..")
            assert len(folder.name) <= 200
            assert folder.name.isprintable()

    def test_the_run_directory_is_the_one_that_was_named(self, run: Path, command: Command, tmp_path: Path) -> None:
        """`out` in `settings.yaml` may be out of date, because the run may have moved."""
        elsewhere = tmp_path / "elsewhere"
        content = yaml.safe_load((run / SETTINGS).read_text())
        (run / SETTINGS).write_text(yaml.safe_dump(content | {"out": str(elsewhere)}))
        for asked in (("front", run), ("export", run)):
            code, said = command(*asked)
            assert code == 0, said
        assert not elsewhere.exists()
        assert (run / "export").is_dir()

    def test_a_study_name_is_no_path(self, run: Path, command: Command) -> None:
        content = yaml.safe_load((run / SETTINGS).read_text())
        for name in ("../evil", "/tmp/evil", "a/../../b", "..", ".hidden", "a b", "a\nb"):
            (run / SETTINGS).write_text(yaml.safe_dump(content | {"study": name}))
            for asked in (("front", run), ("export", run), ("dashboard", run)):
                code, said = command(*asked)
                assert code == 2
                assert "study must match pattern" in said

    def test_a_trial_number_is_no_path(self, run: Path, command: Command) -> None:
        path = run / "trials.csv"
        header, first, *rest = path.read_text().splitlines(keepends=True)
        for trial in ("../1", "/etc/1", "1/../../2", "1.0", "-1", "0x1", " "):
            path.write_text(header + trial + first[first.index(",") :] + "".join(rest))
            for asked in (("front", run), ("export", run, "--top", 3)):
                code, said = command(*asked)
                assert code == 2
                assert "trial" in said

    def test_names_of_layers_and_classes_are_no_paths(self, run: Path, command: Command, tmp_path: Path) -> None:
        recipe = next((run / "recipes").glob("*.yaml"))
        names = ["../../evil", "/tmp/evil", "<script>alert(1)</script>", "a\nb", *"efghij"]
        with safe_open(run / "supernet.safetensors", framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            described = json.loads(file.metadata()["ltmsearch"])
        save_file(tensors, run / "supernet.safetensors", {"ltmsearch": json.dumps(described | {"class_names": names})})
        before = {path for path in tmp_path.rglob("*") if run not in path.parents}
        for asked in (
            ("export", run, "--weights"),
            ("visualize", recipe, "--checkpoint", run / "supernet.safetensors", "--out", run / "v"),
        ):
            code, said = command(*asked)
            assert code == 0, said
        assert {path for path in tmp_path.rglob("*") if run not in path.parents} == before
        page = next((run / "v").glob("*.html")).read_text(encoding="utf-8")
        assert "<script>alert(1)" not in page
        evil = load_recipe(recipe).changed({"schedule": {"../../evil": 0.5}})
        evil.save(tmp_path / "evil.yaml")
        code, said = command("train", tmp_path / "evil.yaml")
        assert code == 2
        assert "evil" in said.splitlines()[-1]

    @pytest.mark.parametrize(
        "name",
        ["front.csv", "export", *(pytest.param(n, marks=pytest.mark.slow) for n in ("report.html", "recipes"))],
    )
    def test_nothing_is_written_through_a_link_out_of_a_run(
        self, name: str, run: Path, command: Command, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        if (run / name).is_dir() or name == "export":
            shutil.copytree(run / name, outside) if (run / name).is_dir() else outside.mkdir()
            (outside / "precious.yaml").write_text("mine")
            shutil.rmtree(run / name, ignore_errors=True)
        else:
            (run / name).rename(outside)
        (run / name).symlink_to(outside)
        before = {path: path.read_bytes() for path in tmp_path.glob("outside/**/*") if path.is_file()}
        for asked in (
            ("front", run),
            ("export", run),
            ("dashboard", run, "--port", 0),
            ("run", *tiny_options(out=run)),
        ):
            code, said = command(*asked)
            assert code == 2, (asked, said)
            assert f"but {name} is a link to {outside}" in said.splitlines()[-1]
        assert {path: path.read_bytes() for path in before} == before

    def test_a_dangling_driver_link_is_not_followed(self, run: Path, command: Command, tmp_path: Path) -> None:
        (run / "driver.json").symlink_to(tmp_path / "outside")
        code, said = command("run", *tiny_options(out=run))
        assert code == 2
        assert "driver.json is a link to" in said.splitlines()[-1]
        assert not (tmp_path / "outside").exists()

    def test_links_within_a_run_and_to_it_are_kept(self, run: Path, tmp_path: Path) -> None:
        (run / "best.yaml").symlink_to(next((run / "recipes").glob("*.yaml")))
        (tmp_path / "link").symlink_to(run)
        refuse_links_outward(tmp_path / "link")
        refuse_links_outward(tmp_path / "not-there")
