"""Does a test notice when a line of the core changes? Mutation testing of the root files and the store.

`make mutants`: mutmut makes thousands of small changes, one at a time, and runs the tests that come by the
changed function. Fails under 95 % noticed, and for a survivor without a reason below. Not changed are the
words of error messages (tests match what they must say) and the drawing of figures (which are looked at).

The kernels of `localization` are tried as plain Python: a compiled function cannot be changed as it runs.
"""

import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPY = ROOT / "build" / "mutants"
LEAST = 95.0  # % of the changes
SURVIVED, UNTESTED = 0, 33  # exit statuses of mutmut's

# What may survive and why that is no fault: where (module: function), a pattern of the change, the reason.
ANY, DRAWING = "", r"^explain: Explanation\.(show|save|_draw|_probabilities)"
KERNELS = r"^localization: (_mean_share|_cell_area|_area|_extent|_reach|_surface_boxes)"
REASONS = [
    (
        ANY,
        r"\.to\((None|dtype|torch\.float64)?\)|\.to\(None, |dtype=None|nan_to_num\(None",
        "the same in one type and on a CPU",
    ),
    (
        ANY,
        r"device=None|map_location|len\(batch\), \)|len\(batch\), d\w+=\S+\)$|\(\(\), device=|=dtype, \)",
        "the same in one type and on a CPU",
    ),
    (ANY, r"strict=(None|False)|zip\(prior, means, \)", "lengths are equal by construction"),
    (
        ANY,
        r"full_matrices|centred, \)|mean\(0\), \)|align_corners=None|mode=mode, \)|\"bilinear\", \)",
        "another way to say the default",
    ),
    (r"^estimators: nearest", r"labels, random_state", "another way to say the default"),
    (ANY, r"weights_only=None|\"cpu\", \)", "another way to say the default"),
    (
        r"^cam: contrast_weights|^explain: ",
        r"weight\.device, |labels\.to\(torch|to\(parameter\.dtype\)|\(v, \)|logits\.dtype, \)|dtype = None",
        "the same in one type and on a CPU",
    ),
    (r"^cam: rival_classes", "sign = ", "a scale does not change an order"),
    (
        r"^data/store: ",
        r"_is_good\(entry, None\)|allow_nan=None|FRESH_SINCE\"\) or 1",
        "made again to the same, or the same to JSON, or 1970",
    ),
    (r"^explain: InfoCAM\._exactly", "or not seen", "no network is known that comes here without maps"),
    (
        r"^explain: InfoCAM\.__call__",
        r"shape\[2:\]|range\(3\)",
        "a network has one number of channels; twice is enough",
    ),
    (ANY, r"einsum\(\"[A-Z]", "names of axes"),
    (
        ANY,
        r"encoding=|open\(path, \"a\", \)|indent=|sort_keys=True, \)|SHA256|exist_ok=None",
        "another way to write the same",
    ),
    (ANY, r"^[-+] .*[<>].*(1e-3|1e-4|0\.02|error|0\.05|1\.05|float32\)\.max)", "exactly on a tolerance"),
    (r"^localization: _compiled", "njit", "the kernels are tried as plain Python"),
    (r"^information: _traced", "", "its test is left out: it would compile mutmut's own code"),
    (r"^information: PCSoftmaxLoss\._apply", "recurse|super", "a loss has no modules within"),
    (r"^information: ", r"XXsoftmaxXX|\"SOFTMAX\"", "any kind but pc is read as softmax"),
    (r"^information: ", r"max\(2, CHUNK", "two rows at a time give what one gives"),
    (
        r"^information: check_prior|^prior_shift: PriorShift\._wanted",
        "prior",
        "float64 or the finest the given has: rounding",
    ),
    (r"^data/store: ", r"entry\.json|ENTRY\.JSON", "the description is written once more"),
    (r"^data/store: Store\.bring", r"name\.partition\(", "a kind has no hyphen: the next condition says so"),
    (r"^data/store: ", r"timeout=1\)|st_mtime > float", "a second later, or in the very instant"),
    (DRAWING, "", "drawing: looked at"),
    (r"Explanation\.overlay", "signed <= 0", "at zero there is no colour"),
    (r"^explain: stock_classifier", r"RESNET18|list_models\(None\)", "torchvision takes either"),
    (r"^explain: ", r"\[:301\]|\[:4\]", "the length of a message"),
    (
        r"^explain: |^cam: _chosen",
        r"zeros\((2, 1, 1|1, 2, 1|1, 1, 2)\)|or True else int\(given\)|view\(-1\)\.expand",
        "either is taken",
    ),
    (r"^estimators: nearest", r"x\[y != k\]", "the mean of the other classes lies on the same line"),
    (r"^estimators: check_estimator", "sure = |moved = float", "another question of the same kind"),
    (
        r"^gaussians: ",
        r"means\[1\]|out=None|rise, where=|else 1\.0\)$",
        "what all classes share cancels, or is not read",
    ),
    (r"^gaussians: _?\w*\.?_projected_means", "1e-9", "either side of a tolerance"),
    (
        r"^official: ",
        r"torch\.arange\(batch_size|prepend=",
        "whole numbers below 2²⁴ are exact in float32 too",
    ),
    (r"^official: ", r"np\.arange\(257\)", "a colour beyond the last is the last"),
    (
        KERNELS,
        r"p0 == s0|s0 >= s1|1e-15|g <= 0\.02|> 1:$|>= 0:$|start <= stop",
        "a short cut to what the formula gives",
    ),
    (KERNELS, r"in_(left|right) = |>= level", "a node on the level belongs to no component"),
    (KERNELS, r"else 1\.5$|[cd] \+ 2|range\(b \+ 1\)", "beyond the border, or no node of the component"),
    (
        KERNELS,
        r"levels \+ 2|3 \* nodes|= -2$|-2\)|0, -2, 0\.0|/ w, np",
        "more memory, or another mark for nothing",
    ),
    (KERNELS, r"y >= 0|falls = ", "the row before the first holds no event; equal ends have no saddle"),
    (KERNELS, r"components|best [<=]+ [01]|best < 0\) or True|known", "looks again at what is known"),
    (KERNELS, r"_NEARLY|root <= best|area >= largest", "equal to rounding"),
]


def prepare() -> None:
    """A copy to change, with the kernels as plain Python."""
    shutil.rmtree(COPY, ignore_errors=True)
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in tracked.splitlines():
        if name.startswith(("infocam_utils/", "tests/", "notebooks/", "pyproject.toml")):
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, COPY / name)
    kernels = COPY / "infocam_utils" / "localization.py"
    kernels.write_text(kernels.read_text().replace("\n@_compiled\n", "\n"))


def functions(source: str) -> dict[str, list[str]]:
    """The lines of every version of every function, as mutmut has written them one below the other."""
    lines = source.splitlines()
    versions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return {v.name: lines[v.lineno - 1 : v.end_lineno] for v in versions if "__mutmut_" in v.name}


def change(name: str, versions: dict[str, list[str]]) -> str:
    """What a mutant changes: lines of the function before and after."""
    original = versions[name.rpartition("__mutmut_")[0] + "__mutmut_orig"]
    before, after = ([re.sub(r"__mutmut_\w+\(", "(", line) for line in v] for v in (original, versions[name]))
    lines = difflib.unified_diff(before, after, n=0, lineterm="")
    return "\n".join(
        f"{line[0]} {line[1:].strip()}" for line in lines if not line.startswith(("---", "+++", "@@"))
    )


def main() -> int:
    if "--report" not in sys.argv:
        prepare()
        command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(os.cpu_count() or 1)]
        subprocess.run(command, cwd=COPY, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    noticed, total, why, unexplained = Counter(), Counter(), Counter(), []
    for meta in sorted((COPY / "mutants").rglob("*.meta")):
        module = str(meta.relative_to(COPY / "mutants" / "infocam_utils")).removesuffix(".py.meta")
        versions = functions(meta.with_suffix("").read_text())
        for key, status in json.loads(meta.read_text())["exit_code_by_key"].items():
            name = key.rpartition(".")[2]
            total[module] += 1
            if status is None:
                raise SystemExit(f"{key} was not tried; run again")
            if status not in (SURVIVED, UNTESTED):
                noticed[module] += 1
                continue
            text = change(name, versions)
            place = re.sub(r"^x_?|__mutmut_\d+$", "", name).strip("ǁ").replace("ǁ", ".")
            here = f"{module}: {place}"
            matching = (
                r for where, what, r in REASONS if re.search(where, here) and re.search(what, text, re.M)
            )
            reason = next(matching, None)
            why[reason] += 1
            if reason is None:
                unexplained.append(f"{here}\n{text}")
    for module in sorted(total):
        print(f"{module}: {noticed[module]} of {total[module]} noticed")
    for reason, count in why.most_common():
        print(f"  {count} survive: {reason or 'without a reason'}")
    share = 100 * noticed.total() / max(total.total(), 1)
    print(*unexplained, sep="\n\n")
    print(f"{noticed.total()} of {total.total()} changes noticed, {share:.1f} %")
    return int(share < LEAST or bool(unexplained))


if __name__ == "__main__":
    sys.exit(main())
