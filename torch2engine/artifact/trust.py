"""Whether a folder may hold code that this process runs.

Enters: a path. Leaves: a reason why not, or "". Separate because an engine is code, and who can write to its folder, to
a folder above it, or to a link on the way, decides what runs.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

__all__ = ["distrust", "is_own_folder"]

_MOST_LINKS = 40


def distrust(folder: Path) -> str:
    """Say why a folder must not be used, e.g. "its owner is another user"; "" if it may, or is missing.

    The folder must be the user's own, and nobody else may write to it. Folders above it, and folders of links that lead
    to it, must belong to the user or to root. Others may write to these only where the sticky bit keeps them from
    renaming what isn't theirs, as in /tmp.
    """
    place = Path("/")
    waiting = list(Path(os.path.abspath(folder)).parts[1:])
    links = 0
    while True:
        status = _status(place)
        if status is None:
            return ""
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > _MOST_LINKS:
                return f"too many links lead to '{place}'"
            if not _is_trusted_owner(status):
                return f"the link '{place}' belongs to another user"
            target = Path(os.readlink(place))
            waiting = [*(target.parts[1:] if target.is_absolute() else target.parts), *waiting]
            place = Path("/") if target.is_absolute() else place.parent
            continue
        if reason := _reason(place, status, is_last=not waiting):
            return reason
        if not waiting:
            return ""
        part = waiting.pop(0)
        place = place.parent if part == ".." else place / part


def is_own_folder(path: Path) -> bool:
    """Whether a path is a folder, not a link to one, that belongs to the user, and to which nobody else may write."""
    status = _status(path)
    return status is not None and stat.S_ISDIR(status.st_mode) and not _reason(path, status, is_last=True)


def _reason(place: Path, status: os.stat_result, is_last: bool) -> str:
    if is_last and status.st_uid != os.geteuid():
        return f"'{place}' belongs to another user"
    if not _is_trusted_owner(status):
        return f"'{place}', above it, belongs to another user"
    others = stat.S_IWOTH if not is_last and _is_private_group(status.st_gid) else stat.S_IWOTH | stat.S_IWGRP
    if status.st_mode & others and (is_last or not status.st_mode & stat.S_ISVTX):
        who = "everybody" if status.st_mode & stat.S_IWOTH else "a group"
        return f"{who} may write to it" if is_last else f"{who} may write to '{place}', above it"
    return ""


def _is_private_group(group: int) -> bool:
    """Whether a group is the user's alone, as most systems make one for each user together with a umask of 002."""
    try:
        user = pwd.getpwuid(os.geteuid())
        members = grp.getgrgid(group)
    except KeyError:
        return False
    return user.pw_uid != 0 and members.gr_name == user.pw_name and set(members.gr_mem) <= {user.pw_name}


def _is_trusted_owner(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.geteuid())


def _status(place: Path) -> os.stat_result | None:
    try:
        return place.lstat()
    except (OSError, ValueError):
        return None
