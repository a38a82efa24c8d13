"""A repair of a library: what is changed, why, and whether it still fits the installed version.

A repair touches attributes that the library may rename in any release. `misfits` looks for them by name, in classes and
in the code of their methods. It makes no client and takes milliseconds, so every process looks before it connects.
"""

from __future__ import annotations

import dis
import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from streams.errors import RepairMisfit

_PART: Final = re.compile(r"(?P<module>[\w.]+):(?:(?P<owner>\w+)\.)?(?P<name>\w+)(?:\((?P<parameters>[\w, ]*)\))?")


class Repair(msgspec.Struct, frozen=True, kw_only=True):
    """One repair. `touches` are the parts of the library that it relies on, each in one of these forms:

    `module:Class.method(parameter, parameter)`, `module:Class.attribute`, `module:name`.
    """

    name: str
    needed_by: str
    """The library and the version that was last seen to need it."""
    reason: str
    until: str
    """When it can go."""
    touches: tuple[str, ...]


def check(repairs: Sequence[Repair]) -> None:
    """Raise RepairMisfit where a repair does not fit the installed version; it names each part that is missing."""
    problems = [f"{repair.name}: {problem}" for repair in repairs for problem in misfits(repair)]
    if problems:
        raise RepairMisfit(why="; ".join(problems) + ".")


def misfits(repair: Repair) -> Iterator[str]:
    """Yield a sentence for each part that the installed version lacks, or that takes other parameters."""
    for part in repair.touches:
        match = _PART.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no part of a module")
        problem = _problem(match["module"], match["owner"], match["name"], match["parameters"])
        if problem is not None:
            yield problem


def _problem(module_name: str, owner_name: str | None, name: str, parameters: str | None) -> str | None:
    try:
        owner: object = importlib.import_module(module_name)
    except ImportError:
        return f"there is no module {module_name}"
    where = module_name
    if owner_name is not None:
        where = f"{module_name}.{owner_name}"
        owner = getattr(owner, owner_name, None)
        if not isinstance(owner, type):
            return f"there is no class {where}"
    if not hasattr(owner, name) and not (isinstance(owner, type) and _is_assigned(owner, name)):
        return f"{where} has no {name}"
    if parameters is None:
        return None
    taken = inspect.signature(getattr(owner, name)).parameters
    missing = [each for each in re.findall(r"\w+", parameters) if each not in taken]
    return f"{where}.{name} takes no {' and no '.join(missing)}" if missing else None


def _is_assigned(owner: type, name: str) -> bool:
    """Return whether a method of the class assigns to an attribute of this name."""
    functions = [value for each in owner.__mro__ for value in vars(each).values() if inspect.isfunction(value)]
    return any(
        instruction.opname == "STORE_ATTR" and instruction.argval == name
        for function in functions
        if name in function.__code__.co_names  # disassembling all methods of a class takes milliseconds
        for instruction in dis.get_instructions(function)
    )
