"""The dashboard's server: optuna-dashboard with a study's database and the files of its trials."""

import socket
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from optuna.artifacts import FileSystemArtifactStore
from optuna_dashboard import wsgi

from ltmsearch.callbacks import Callbacks
from ltmsearch.errors import InputError
from ltmsearch.io.files import refuse_links_outward
from ltmsearch.search.run import Run
from ltmsearch.search.storage import ARTIFACTS, find_study, open_storage, refuse_damaged_study
from ltmsearch.search.storage.optuna_private import study_id


class _Server(ThreadingMixIn, WSGIServer):
    """A thread per request: a browser that keeps its connection open does not block others."""

    daemon_threads = True


class _IPv6Server(_Server):
    address_family = socket.AF_INET6


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_: Any) -> None:
        """Log no requests, which the page sends every few seconds; errors are still logged."""


def serve_dashboard(run: Path, *, host: str, port: int, callbacks: Callbacks) -> None:
    """Serve the pages of a run directory's study, also while it runs, until Ctrl-C.

    Raises:
        InputError: There is no study, its database cannot be reached, or the address cannot be listened on.
    """
    settings = Run.open(run).settings
    refuse_damaged_study(settings, run)
    refuse_links_outward(run)
    storage = open_storage(settings, run, existing=True)
    study = find_study(storage, settings.study)
    if study is None:
        raise InputError(f"{run} must be the run directory of a study, but its database has no {settings.study}")
    app = wsgi(storage, artifact_store=FileSystemArtifactStore(run / ARTIFACTS))
    server_class = _IPv6Server if ":" in host else _Server
    try:
        server = make_server(host, port, app, server_class, _Quiet)
    except OSError as error:
        raise InputError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    named = f"[{host}]" if ":" in host else host
    address = f"http://{named}:{server.server_port}/dashboard/studies/{study_id(study)}"
    with server, suppress(KeyboardInterrupt):
        callbacks.note(f"dashboard of {run} at {address} (press Ctrl-C to stop)")
        server.serve_forever()
