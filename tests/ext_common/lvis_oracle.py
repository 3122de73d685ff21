"""Runs the ``lvis`` package in a process of its own: ``python lvis_oracle.py CASES.json``.

The package calls ``np.float``, which numpy removed; here, and only here, the name is given back.
CASES.json lists {"truth": FILE, "found": FILE, "task": ...}; prints the results of each as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

setattr(np, "float", float)  # noqa: B010 - the name itself is what the linter refuses

from lvis import LVIS, LVISEval, LVISResults  # noqa: E402


def main(cases_file: str) -> None:
    answers = []
    for case in json.loads(Path(cases_file).read_text()):
        truth = LVIS(case["truth"])
        found = json.loads(Path(case["found"]).read_text())
        if case["task"] == "segm":
            for record in found:
                del record["bbox"]
        evaluation = LVISEval(truth, LVISResults(truth, found, case["max_dets"]), case["task"])
        evaluation.params.max_dets = case["max_dets"]
        evaluation.run()
        precision_TRKA = evaluation.eval["precision"]
        answers.append(
            {
                "results": evaluation.get_results(),
                "class_ap": precision_TRKA[..., 0].mean(axis=(0, 1)).tolist(),
                "class_ap50": precision_TRKA[0, ..., 0].mean(axis=0).tolist(),
            }
        )
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
