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

# What survives, by a pattern of the changed lines ("- before", "+ after"), and why that is no fault.
# Patterns hold of the whole text of a change.
REASONS = [
    (r"\.to\((None|dtype)?\)|device=None|map_location|nan_to_num\(None", "the same on a CPU, or in one type"),
    (r"strict=(None|False)|zip\(prior, means, \)", "lengths are equal by construction"),
    (
        r"full_matrices|align_corners=None|size=side, mode=mode, \)|mode=\"bilinear\", \)",
        "the default is the same",
    ),
    (r"n_neighbors|weights_only=(None|True, )?\)|map_location=\"cpu\", \)", "the default is the same"),
    (r"numba\.njit", "the kernels are tried as plain Python"),
    (r"is_compiling", "the test under torch.compile is left out: it compiles mutmut's own code"),
    (r"encoding=|open\(path, \"a\", \)", "json.dumps writes ASCII"),
    (
        r"LinearSegmentedColormap|^- reach = |layout=|Figure\(figsize=\(10\.5, 3\.6\), \)",
        "drawing: looked at",
    ),
    (r"\[::\+1\]|XXnatsXX", "drawing: looked at"),
    (r"super\(\)\._apply", "a loss has no modules within"),
    (r"XXsoftmaxXX|\"SOFTMAX\"", "any kind but pc is read as softmax"),
    (r"XXentry\.jsonXX|ENTRY\.JSON", "the description is written once more"),
    (r"name\.partition\(", "a kind has no hyphen: the next condition says so"),
    (r"einsum\(\"[A-Z]", "names of axes"),
    (r"max\(2, CHUNK", "two rows at a time give what one gives"),
    (r"RESNET18|list_models\(None\)", "torchvision takes either"),
    (r"\[:301\]|known\[:4\]", "the length of a message"),
    (r"x\[y != k\]", "the mean of the other classes lies on the same line"),
    (
        r"means\[1\]|out=None|rise, where=|else 1\.0\)$",
        "what is common to all classes, or is not read, cancels",
    ),
    (r"1e-9 \* max|1e-9 / max", "rounding: either side of a tolerance"),
    (r"sure = |moved = float", "`check_estimator`: another question of the same kind"),
    (
        r"^- .*(<|>|<=|>=).*(1e-3|1e-4|0\.02|error|0\.05|1\.05|float32\)\.max)",
        "exactly on a tolerance",
    ),
    (r"signed <= 0", "at zero there is no colour"),
    (r"indent=|SHA256|exist_ok=None|sort_keys=True, \)", "layout, or another name of the same"),
    (r"timeout=1\)", "waits a second for the same"),
    (r"st_mtime > float", "made in the very instant"),
    (r"prior\.device\.type|np\.(as)?array\(.*self\.prior", "float64 or the finest the given has: rounding"),
    (r"np\.arange\(257\)", "a colour beyond the last is the last"),
    (r"torch\.arange\(batch_size|prepend=", "whole numbers below 2²⁴ are exact in float32 too"),
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
    lines = difflib.unified_diff(original, versions[name], n=0, lineterm="")
    told = [line[0] + " " + line[1:].strip() for line in lines if not line.startswith(("---", "+++", "@@"))]
    return "\n".join(line for line in told if "__mutmut_" not in line or "=" in line)


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
            reason = next((r for pattern, r in REASONS if re.search(pattern, text, re.M)), None)
            why[reason] += 1
            if reason is None:
                unexplained.append(f"{module}: {place}\n{text}")
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
