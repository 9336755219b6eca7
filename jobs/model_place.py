"""Model and run folders on the command line: paths, or URLs of object storage, which are copied to this machine."""

from pathlib import Path


def folder_here(place: str) -> Path:
    """Return a folder with the config and the results of a run, or with a model.

    Raises:
        ConfigError: there is nothing at the URL.
        OSError: the storage failed, or refused.
    """
    if "://" not in place:
        return Path(place)
    from pipeline.config import ConfigError
    from pipeline.run_folder.place import reading_copy
    from pipeline.storage.urls import check_run_dir

    check_run_dir(place, "folder")
    folder = reading_copy(place, "")
    if not any(folder.iterdir()):
        raise ConfigError(f"{place}: nothing there; expected the folder of a run, or a model folder")
    return folder
