"""`-m`: the plans of all combinations of the values given, one after the other.

Owns the headings and the exit status. Starts nothing and writes no file: Hydra's own multirun would make a folder
per combination.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.actions import planned, print_json
from launcher.config import ConfigRefused, load
from launcher.refusal import Refused
from launcher.sweep import combinations
from launcher.view.render import render_plan

WANTED = "action=plan"


def plan_all(overrides: Sequence[str]) -> int:
    """0: every combination can run; 1: some cannot, and their faults are told among the plans. Raises ConfigRefused."""
    found = combinations(overrides)
    if not all(WANTED in chosen for chosen in found):
        raise ConfigRefused([f"action: -m compares plans; add {WANTED}, and start the one you choose without -m"])
    as_json = all("output=json" in chosen for chosen in found)
    entries = []
    num_impossible = 0
    for number, chosen in enumerate(found, start=1):
        told = [override for override in chosen if override not in (WANTED, "output=json")]
        try:
            plan, scripts = planned(load(chosen))
            entry, text = {"overrides": told, "plan": plan, "scripts": scripts}, render_plan(plan, scripts)
        except Refused as refused:
            num_impossible += 1
            entry, text = {"overrides": told, "faults": refused.faults}, f"impossible:\n{refused}\n"
        entries.append(entry)
        if not as_json:
            print(f"# ==== {number} of {len(found)}: {' '.join(told)}\n\n{text}", flush=True)
    if as_json:
        print_json(entries)
    return 1 if num_impossible else 0
