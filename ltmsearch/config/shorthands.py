"""Shorthands of settings: what follows from a data folder, a range of budgets, and a storage's URL with a password."""

from typing import Any

from ltmsearch.errors import InputError


def expanded(values: dict[str, Any]) -> dict[str, Any]:
    """Settings with their shorthands spelled out; what is none stays as it is.

    Raises:
        ValueError: For an invalid URL of a storage.
    """
    values = dict(values)
    if values.get("data_dir") is not None and "dataset" not in values:
        values["dataset"] = "folder"
    return (
        values
        | _img_sizes(values.get("search_img_size"))
        | _range_of_budgets(values.get("budget_gflops"))
        | _without_password(values.get("storage"))
    )


def _range_of_budgets(given: Any) -> dict[str, Any]:
    if not isinstance(given, str):
        return {}
    try:
        return {"budget_gflops": float(given)}
    except ValueError:
        low, dash, high = (part.strip() for part in given.partition("-"))
    return {"lowest_gflops": low, "budget_gflops": high} if low and dash and high else {}


def _img_sizes(given: Any) -> dict[str, Any]:
    """The numbers of a list such as 84,98,112, of which a command line may have several."""
    words = [given] if isinstance(given, str) else given
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        return {}
    parts = [part for word in words for part in word.split(",")]
    return {"search_img_size": "auto" if parts == ["auto"] else parts}


def _without_password(given: Any) -> dict[str, Any]:
    if not isinstance(given, str):
        return {}
    from ltmsearch.config.storage_url import parse_storage_url  # imports sqlalchemy, for which `--help` need not wait

    try:
        url, password = parse_storage_url(given)
    except InputError as error:  # as a ValueError, pydantic reports it with the file and its line
        raise ValueError(str(error)) from None
    return {"storage": url} | ({} if password is None else {"storage_password": password})
