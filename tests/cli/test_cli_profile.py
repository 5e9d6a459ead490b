"""The `profile` command."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Ltmsearch
from support.profiles import costs_of, whole_space


@pytest.fixture
def quick_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The minimum of subnets and measurements."""
    for name, value in (("SECONDS", 0.0), ("FEWEST", 16), ("MOST", 16), ("ROUNDS", 1), ("PLAIN_SAMPLES", 1)):
        monkeypatch.setattr(f"ltmsearch.latency.build.{name}", value)
    monkeypatch.setattr("ltmsearch.latency.study.ROUNDS", 1)
    monkeypatch.setattr("ltmsearch.latency.study.EXTRA_ROUNDS", 0)
    monkeypatch.setattr("ltmsearch.latency.measurement.SAMPLE_SECONDS", 0.0)


PROFILE = ("profile", "mobilevit_xxs", "--device", "cpu", "--img-size", "96", "--num-classes", "10")


@pytest.mark.usefixtures("quick_timing")
@pytest.mark.slow
def test_a_backbone_profile_is_kept_and_reused(
    tmp_path: Path, user_cache: Path, monkeypatch: pytest.MonkeyPatch, ltmsearch: Ltmsearch
) -> None:
    from ltmsearch.latency import LatencyProfile, build

    made: list[str] = []
    build_profile = build.build_profile

    def counted(backbone: str, *rest: Any) -> LatencyProfile:
        made.append(backbone)
        return build_profile(backbone, *rest)

    monkeypatch.setattr("ltmsearch.latency.command.build_profile", counted)
    copy = tmp_path / "folder/copy.json"
    code, out, err = ltmsearch(*PROFILE, "--json", "--out", copy)
    assert code == 0, err
    record = json.loads(out)
    (kept,) = (user_cache / "ltmsearch/profiles").iterdir()
    assert record["file"] == str(kept)
    assert copy.read_bytes() == kept.read_bytes()
    profile = LatencyProfile.load_file(kept)
    assert record["backbone"] == profile.backbone == "mobilevit_xxs"
    assert record["target"] == profile.target.model_dump()
    assert record["plain"] == profile.plain.model_dump()
    assert record["subnets"] == len(profile.subnets) >= 10
    assert record["lowest_ms"] < record["highest_ms"]
    space = whole_space(costs_of("mobilevit_xxs", 96), "mobilevit_xxs")
    assert record["saved_ms"].keys() == set(space.layers)
    for layer, options in zip(space.layers, space.choices, strict=True):
        assert list(record["saved_ms"][layer]) == [str(choice) for choice in options[1:]], layer
    assert {name.split()[1] for name in record["uniform"]} == {"matched"}
    assert all(record["lowest_ms"] <= net["latency_ms"] <= record["highest_ms"] for net in record["uniform"].values())
    assert made == ["mobilevit_xxs"]
    code, out, _ = ltmsearch(*PROFILE, "--json")
    assert (code, json.loads(out)) == (0, record)
    code, out, _ = ltmsearch(*PROFILE)
    assert code == 0
    assert f"profile: {kept}" in out
    assert f"plain network {profile.plain.ms:.2f} ± " in out
    assert made == ["mobilevit_xxs"], "read, not measured"
    kept.write_text("damaged")
    assert ltmsearch(*PROFILE, "--json")[0] == 0
    assert len(made) == 2
    assert LatencyProfile.load_file(kept).backbone == "mobilevit_xxs"
    assert ltmsearch(*PROFILE, "--again", "--json")[0] == 0
    assert len(made) == 3
    assert len(list((user_cache / "ltmsearch/profiles").iterdir())) == 1


@pytest.mark.usefixtures("quick_timing")
def test_a_recipe_is_measured_with_its_unmerged_network(tmp_path: Path, user_cache: Path, ltmsearch: Ltmsearch) -> None:
    from ltmsearch.config.recipe import Recipe

    recipe = Recipe(
        model="ltm_mobilevit_xxs", operator="ltm", schedule={"stages.2.1.transformer.0": 0.5}, img_size=64,
        num_classes=10, provenance={},
    )  # fmt: skip
    recipe.save(tmp_path / "17.yaml")
    arguments = ("profile", str(tmp_path / "17.yaml"), "--device", "cpu")
    code, out, err = ltmsearch(*arguments, "--json")
    assert code == 0, err
    record = json.loads(out)
    assert list(record) == ["backbone", "recipe", "target", "nets"]
    assert list(record["nets"]) == ["plain mobilevit_xxs", "17.yaml"]
    assert (record["target"]["img_size"], record["target"]["num_classes"]) == (64, 10), "the recipe's own"
    plain, merged = record["nets"].values()
    assert merged["gflops"] < plain["gflops"]
    assert all(net["reading"]["ms"] > 0 for net in (plain, merged))
    assert merged["reading"]["visits"] == 1
    larger = ltmsearch(*arguments, "--img-size", "96", "--json")[1]
    assert json.loads(larger)["target"]["img_size"] == 96
    code, out, _ = ltmsearch(*arguments)
    assert code == 0
    assert [word for word in ("plain mobilevit_xxs", "17.yaml", "× plain", "samples") if word not in out] == []
    assert not user_cache.exists(), "only profiles of backbones are kept"
