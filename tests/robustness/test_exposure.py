"""Exposure to others: addresses that are listened on, names in pages, passwords."""

import re
import signal
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.command_line import Notes, call, tiny
from support.processes import PIPE, started
from support.records import make_answers, make_run
from test_fuzz import RECORDS

from ltmsearch.config.objective import CostAxis
from ltmsearch.config.storage_url import parse_storage_url
from ltmsearch.errors import InputError
from ltmsearch.reporting.dashboard.notes import LayerTokens, study_note, trial_note
from ltmsearch.reporting.findings import find
from ltmsearch.reporting.html import write_page
from ltmsearch.reporting.write import write_plots

SECRET = "s3cr3t-pa55"
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>`**[x](javascript:alert(3))|"
AXIS = CostAxis(name="gflops", title="GFLOPs", budget=0.3)


class Elements(HTMLParser):
    """Names of the elements that a browser creates, and attributes that run code."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.handlers: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.handlers += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]


class TestPages:
    def test_names_from_elsewhere_are_text(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        settings = tiny(tmp_path, data_dir=HOSTILE, dataset="folder", study="s").resolved("cpu")
        pages = {}
        for kind, label in (("harmless", "a name"), ("hostile", HOSTILE)):
            records = [replace(record, label=label) for record in RECORDS]
            folder, answers = tmp_path / kind, make_answers(records)
            write_plots(records, find(records, AXIS, answers), folder, label, callbacks=Notes(), png=False)
            write_page(make_run(folder, settings, records, answers))
            pages[kind] = {path.name: Elements(path.read_text(encoding="utf-8")) for path in folder.glob("*.html")}
        assert set(pages["hostile"]) == {"front.html", "layers.html", "report.html"}
        for name, elements in pages["hostile"].items():
            assert elements.names == pages["harmless"][name].names
            assert elements.handlers == []

    def test_the_report_may_fetch_nothing(self, tmp_path: Path) -> None:
        write_page(make_run(tmp_path, tiny(tmp_path, study="s").resolved("cpu"), RECORDS))
        text = (tmp_path / "report.html").read_text(encoding="utf-8")
        policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
        assert policy is not None
        assert "default-src 'none'" in policy[1]
        assert "http" not in policy[1]
        assert text.index(policy[0]) < text.index("<script"), "a policy holds for what comes behind it"

    def test_notes_of_the_dashboard_render_no_name(self, tmp_path: Path) -> None:
        settings = tiny(tmp_path, data_dir=HOSTILE, dataset="folder", study="s").resolved("cpu")
        records = [replace(record, label=HOSTILE) for record in RECORDS]
        layer = LayerTokens(layer="a", keep_ratio=0.5, form="soft", whole=49, before=49, after=25, windows=1)
        notes = [
            study_note(settings, records, find(records, AXIS, make_answers(records)), base_gflops=0.3, link=str),
            trial_note(records[1], [layer], AXIS, base_gflops=0.3, on_front=True),
        ]
        for note in notes:
            assert "alert(1)" in note
            for begins in ("<script", "</script", "<img", "](javascript", "`", "|x"):
                for at in re.finditer(re.escape(begins), note):
                    if begins == "`" and note[at.start() : at.start() + 20].startswith(("`ltmsearch", "`failure`")):
                        continue
                    own = note.count("\n", 0, at.start()) > note.count("\n", 0, note.find("Reading this page"))
                    assert own or note[at.start() - 1] == "\\", f"{begins} at {at.start()}: {note}"


def listening(process: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal, that a process listens on."""
    sockets = set()
    for link in Path(f"/proc/{process}/fd").iterdir():
        match = re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink()) if link.is_symlink() else "")
        sockets |= {match[1]} if match else set()
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    return {row[1].partition(":")[0] for row in rows if row[3] == "0A" and row[9] in sockets}


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="reads the kernel's list of sockets")
@pytest.mark.parametrize(("options", "addresses"), [((), {"0100007F"}), (("--host", "0.0.0.0"), {"00000000"})])
def test_the_dashboard_listens_on_loopback_by_default(run: Path, options: tuple[str, ...], addresses: set[str]) -> None:
    command = [sys.executable, "-m", "ltmsearch", "dashboard", str(run), "--port", "0", *options]
    with started(command, stdout=PIPE, stderr=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("dashboard of ")
        assert listening(process.pid) == addresses
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    assert ("everyone who can reach it can change and delete studies" in err) == bool(options)


class TestPasswords:
    @pytest.mark.parametrize(
        "content",
        [
            "backbone: mobilevit_xxs\nbudget_gflops: 0.27\nstorage: postgresql://me:{0}@127.0.0.1:1/studies\n",
            "backbone: mobilevit_xxs\nbudget_gflops: x\nstorage: postgresql://me:{0}@127.0.0.1:1/studies\n",
            "storage:postgresql://me:{0}@host/studies\n",
            "- postgresql://me:{0}@host/studies\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nstorage: [postgresql://me:{0}@host/studies]\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nspace: postgresql://me:{0}@host/studies\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nstorage: postgres://me:{0}@host\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nstorage: mysql://me:{0}@host/studies\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nseed: postgresql://me:{0}@host/studies\n",
            "postgresql://me:{0}@host/studies: 1\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nstorage: 'postgresql://me:{0}@host/studies\n",
            "backbone: mobilevit_xxs\nbudget_gflops: 1\nstorage_password: [{0}]\n",
        ],
    )
    def test_passwords_in_a_config_file_are_not_shown(
        self, content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("PGPASSWORD", SECRET + "-env")
        (tmp_path / "a.yaml").write_text(content.format(SECRET))
        arguments = ("run", "--config", "a.yaml", "--verbose", "--out", str(tmp_path / "run"))
        code, out, error = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert code == 2
        assert error.splitlines()[-1].startswith("error: ")
        assert SECRET not in out + error
        assert not (tmp_path / "run").exists()

    def test_errors_show_no_password(self) -> None:
        for make in (InputError, Exception):
            line = str(make(f"cannot reach postgresql+psycopg://me:{SECRET}@host:5432/d now"))
            assert (SECRET in line) == (make is Exception)
        assert parse_storage_url(f"postgresql://me:{SECRET}@host/d").password == SECRET

    def test_the_environment_is_not_logged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setenv("PGPASSWORD", SECRET)
        arguments = ("export", str(tmp_path), "--verbose")
        _, out, error = call(*arguments, monkeypatch=monkeypatch, capsys=capsys)
        assert "finished after" in error
        assert SECRET not in out + error
