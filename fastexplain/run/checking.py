"""Whether all of a run is as it was written, file by file."""

from __future__ import annotations

from fastexplain.errors import RunError
from fastexplain.run.directory import Run
from fastexplain.run.layout import check_values
from fastexplain.run.rows import HASHED, whole
from fastexplain.run.weights import stored_weights


def damages(run: Run) -> list[str]:
    """A line for each file of a run that is damaged.

    Every byte of the files of arrays is compared with its hash, if the run has hashes, and what
    must be in them is looked for. Of the database SQLite examines the structure, and the rows of
    what was explained, simulated, scored and answered are compared with their hashes.
    """
    found = []
    for site in ("", *run.sites):
        try:
            _check_arrays(run, site)
        except RunError as error:
            found.append(str(error))
    found += _damaged_weights(run)
    try:
        _check_database(run)
    except RunError as error:
        found.append(str(error))
    return list(dict.fromkeys(found))


def _check_arrays(run: Run, site: str) -> None:
    file = run.file(site)
    file.verify()
    for name, array in file.arrays.items():
        if array.dtype.startswith("I"):
            check_values(file, name, file.read(name), run.manifest["sweep"]["excerpts"])
    if not site:
        run.token_text(0)  # the vocabulary's ends
        if run.regression is not None:
            run.regression.check_tokens(file.path, run.excerpts)


def _damaged_weights(run: Run) -> list[str]:
    """A line for each file of the weights that is damaged."""
    found = []
    try:
        weights = stored_weights(run)
    except RunError as error:
        return [str(error)]
    if weights is None:
        return []
    for layer in run.layers:
        try:
            weights.file(layer).verify()
        except RunError as error:
            found.append(str(error))
    return found


def _check_database(run: Run) -> None:
    with run.database(read_only=True) as database:
        problems = [text for (text,) in database.query("PRAGMA integrity_check")]
        problems = [] if problems == ["ok"] else problems
        if database.query("PRAGMA foreign_key_check"):
            problems.append("rows refer to others that are not there")
        for table in HASHED:
            [[count]] = database.query(f"SELECT count(*) FROM {table} WHERE NOT {whole(table)}")
            if count:
                problems.append(f"{count} rows of its {table} are not what was stored")
    if problems:
        raise RunError(f"{run.path / 'run.sqlite'} is damaged: {' '.join(problems[0].split())}")
