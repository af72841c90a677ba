"""The command ``infocam``: run the notebooks, fetch data, hold claims against results, explain a photo."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_type_hints

import click

from infocam_utils.data.store import atomic_write, checkout

if TYPE_CHECKING:  # each command imports what it needs, so that help and lists come at once
    from infocam_utils.experiments.tasks import Task
    from infocam_utils.reproduce.runner import Plan

PATH = click.Path(path_type=Path)
DATA_DIR = click.option("--data-dir", type=PATH, help="Where data sets and the cache lie.")


class Refused(click.ClickException):
    """A request that cannot be: one line, and the exit status of a usage error."""

    exit_code = 2


@contextlib.contextmanager
def _one_line(before: str = "", refuse: type[Exception] | tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """What goes wrong in the body is one line, an OSError with `before` it; `refuse` becomes Refused."""
    try:
        yield
    except (ValueError, OSError) as error:
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, refuse):
            raise Refused(text) from error
        raise click.ClickException(before * isinstance(error, OSError) + text) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="infocam")
def cli() -> None:
    """Neural classifiers as mutual-information estimators: the paper's experiments as notebooks."""


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    for value in values:
        if not value.partition("=")[0] or "=" not in value:
            raise click.BadParameter(f"expected key=value, was {value!r}")
    return {name: text for name, _, text in (value.partition("=") for value in values)}


def recipe_fields() -> dict[str, Any]:
    """The fields of a recipe, each with its type; every one is a parameter of the notebooks that have one."""
    from infocam_utils.experiments.recipe import Recipe

    return get_type_hints(Recipe)


@cli.command()
@click.argument("notebooks", nargs=-1)
@click.option("--from", "record", type=PATH, metavar="RESULTS.json", help="Repeat the run that made these.")
@click.option("--profile", help="Parameter file in notebooks/profiles.  [default: quick]")
@click.option(
    "-p",
    "--set",
    "overrides",
    multiple=True,
    callback=_pairs,
    metavar="KEY=VALUE",
    help="A parameter of the notebooks or a field of their recipe; may be given several times.",
)
@click.option("--output", type=PATH, help="Folder to write to.  [default: runs/NAME]")
@click.option("--name", help="What to call this run.  [default: the profile; of --from, the record's folder]")
@DATA_DIR
@click.option("--notebooks", "folder", type=PATH, help="Folder of notebooks.")
@click.option("--fresh", is_flag=True, help="Start over: use no finished notebook and no cached network.")
@click.option(
    "--update",
    is_flag=True,
    help="For maintainers: put the results into results/NAME and, where all parameters are the defaults, "
    "the executed notebooks into their folder.",
)
@click.option(
    "--workers", type=click.IntRange(1), help="Compute networks and maps first, on so many processes."
)
@click.option("--scheduler", metavar="ADDRESS", help="The same on the workers of a Dask cluster.")
@click.option("--dry-run", is_flag=True, help="Only list what would be computed, with sizes and times here.")
def run(
    notebooks: tuple[str, ...],
    record: Path | None,
    profile: str | None,
    overrides: dict[str, str],
    output: Path | None,
    name: str | None,
    data_dir: Path | None,
    folder: Path | None,
    fresh: bool,
    update: bool,
    workers: int | None,
    scheduler: str | None,
    dry_run: bool,
) -> None:
    """Run NOTEBOOKS (all without any; "03" is enough of a name) and write everything to one folder.

    A second run goes on where the first stopped and leaves what is done and unchanged. Started by torchrun,
    on one machine or several, its processes train each network together; the first then runs the notebooks.
    """
    from infocam_utils.data.sets import SETS
    from infocam_utils.reproduce import cluster, report, results, runner

    group = cluster.of_torchrun()
    if group:
        if workers or scheduler or fresh:
            raise Refused("under torchrun neither --workers, --scheduler nor --fresh")
        overrides = overrides | {"devices": str(group[1])}

    if record is not None and (notebooks or profile):
        raise Refused("--from names the notebook and the profile itself; give neither beside it")
    with _one_line(refuse=ValueError):
        chosen = runner.plan(
            notebooks,
            profile or "quick",
            overrides,
            folder,
            record=results.read(record) if record is not None else None,
            recipe_fields=recipe_fields(),
            known_data=[*SETS, "imagenet", "none"],
            data_dir=data_dir,
        )
    if name is None and record is not None:  # results/NAME/03.json and runs/NAME/results/03.json
        places = [p.name for p in record.resolve().parents]
        name = places[places[0] == "results"]
    name = name or chosen[0].profile
    root = checkout() or Path.cwd()
    output = (output or root / "runs" / name).absolute()
    committed = (chosen[0].path.parents[1] if folder else root) / "results"

    if group and group[0] != 0 and dry_run:
        return
    if workers or scheduler or dry_run:
        if (workers and scheduler) or (fresh and not dry_run):
            raise Refused("--workers and --scheduler exclude each other, and --fresh")
        if not _computed(chosen, data_dir, workers, scheduler, dry_run):
            raise click.ClickException(
                "the notebooks were not run; the same command goes on with what failed"
            )
    if dry_run:
        return
    if group:
        _trained_together(chosen, data_dir)
        if group[0] != 0:
            return
        cluster.alone()

    def put_back(plan: Plan) -> None:
        for file in sorted((output / "results").glob(f"{plan.name[:2]}.*")):
            atomic_write(committed / name / file.name, file.read_bytes())
        changed = sorted(k for k, v in plan.parameters.items() if v != plan.defaults[k])
        if changed:
            click.echo(f"{plan.name}: the notebook stays, since it ran with other {', '.join(changed)}")
        else:
            executed = output / "notebooks" / plan.path.name
            atomic_write(plan.path, report.clean_notebook(executed, plan.path))

    with _one_line(f"the run in {output} stopped: ", refuse=runner.PlanError):
        manifest = runner.run(
            chosen,
            output,
            name=name,
            results=committed,
            data_dir=data_dir,
            fresh=fresh,
            command=shlex.join(["infocam", *sys.argv[1:]]),
            after=put_back if update else None,
        )
    states = [manifest["notebooks"].get(plan.name, {}).get("status") for plan in chosen]
    click.echo(f"{states.count('done')} of {len(chosen)} notebooks done; see {output / 'index.html'}")
    if "interrupted" in states:
        _interrupted()
    sys.exit(0 if states.count("done") == len(chosen) else 1)


def _interrupted() -> NoReturn:
    click.echo("interrupted; what is finished is kept, and the same command goes on from there", err=True)
    sys.exit(130)


def _computed(
    chosen: Sequence[Plan],
    data_dir: Path | None,
    workers: int | None,
    scheduler: str | None,
    dry_run: bool,
) -> bool:
    """Have the tasks behind the notebooks computed, or listed; whether all that was tried is done."""
    from infocam_utils.experiments import tasks as work
    from infocam_utils.reproduce import cluster

    with _one_line(refuse=ValueError):
        tasks = _tasks(chosen, data_dir)
        left = cluster.missing(tasks, data_dir)
        click.echo(f"{len(tasks)} tasks, {len(tasks) - len(left)} in the store already")
        if dry_run:
            spent = [(task, work.seconds(task, data_dir)) for task in left]
            for task, one in spent:
                click.echo(f"  {task}: about {one:.0f} s on this machine")
            click.echo(f"about {sum(one for _, one in spent) / 3600:.1f} hours of one such machine")
            return True
        by: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "data_dir": data_dir}
        try:
            failed = cluster.distribute(left, work.compute, work.check, **by, say=click.echo) if left else []
        except KeyboardInterrupt:
            _interrupted()
    for text in failed:
        click.echo(f"failed: {text}", err=True)
    return not failed


def _trained_together(chosen: Sequence[Plan], data_dir: Path | None) -> None:
    from infocam_utils.experiments import tasks as work

    with _one_line(refuse=ValueError):
        work.train_together(_tasks(chosen, data_dir), data_dir)


def _tasks(chosen: Sequence[Plan], data_dir: Path | None) -> list[Task]:
    from infocam_utils.experiments.tasks import tasks_of

    made: list[Task] = []
    for plan in chosen:
        given = plan.in_force
        made += tasks_of(plan.name, given | {"data_dir": given.get("data_dir") or data_dir})
    return made


@cli.command("claims")
@click.option("--check", is_flag=True, help="Fail when README or notebook 05 disagree with the results.")
@click.option("--write", is_flag=True, help="Render the scorecard and the tables into the README.")
@click.option("--root", type=PATH, help="[default: the clone]")
def claims_command(check: bool, write: bool, root: Path | None) -> None:
    """The paper's claims and what the committed results say of them."""
    from infocam_utils.reproduce import claims

    root = root or checkout()
    if root is None:
        raise click.ClickException("the ledger needs a clone of the repository; give --root CLONE")
    with _one_line():
        if write:
            for path in claims.write(root):
                click.echo(f"wrote {path}")
        if check:
            problems = claims.check(root)
            if problems:
                raise click.ClickException("; ".join(problems))
            click.echo("README, notebook 05 and ledger agree with the results")
        if not (check or write):
            judged = claims.scorecard(root)
            for row, (_, cells) in zip(judged, claims.table(judged).iterrows(), strict=True):
                click.echo(f"{row.claim.id}: {row.verdict}")
                for title, cell in cells.items():
                    if cell and title != "Verdict":
                        text = str(cell).replace("<br>", "\n").replace("\n", "\n    ")
                        click.echo(f"  {str(title).lower()}: {text}")


@cli.command()
@click.argument("committed", type=click.Path(exists=True, path_type=Path))
@click.argument("fresh", type=click.Path(exists=True, path_type=Path))
def compare(committed: Path, fresh: Path) -> None:
    """Compare results by number, each within its tolerance: two files, or two folders of them.

    A folder may be a run's. Notebook and parameters must agree too, and both must have the same files.
    """
    from infocam_utils.reproduce.results import compare as differences
    from infocam_utils.reproduce.results import read

    if committed.is_dir() != fresh.is_dir():
        raise Refused(f"{committed} and {fresh} must be two files or two folders")
    old, new = _files(committed), _files(fresh)
    pairs = {name: (old[name], new[name]) for name in sorted(old.keys() & new.keys())}
    found = [f"{name}: not in {fresh}" for name in sorted(old.keys() - new.keys())]
    found += [f"{name}: not in {committed}" for name in sorted(new.keys() - old.keys())]
    if not (pairs or found):
        raise click.ClickException(f"no results in {committed} nor in {fresh}")
    with _one_line():
        for name, (one, other) in pairs.items():
            found += [f"{name}: {text}" for text in differences(read(one), read(other))]
    for text in found:
        click.echo(text)
    if found:
        raise click.ClickException(f"{len(found)} differences")
    click.echo(f"{len(pairs)} files of results agree within their tolerances")


def _files(place: Path) -> dict[str, Path]:
    """A file of results, or those under a folder by their path in it; of a run's folder, its own."""
    if not place.is_dir():
        return {"results": place}
    if (place / "manifest.json").exists():
        place = place / "results"
    found = sorted(place.rglob("[0-9][0-9].json"))
    return {str(p.relative_to(place).with_suffix("")): p for p in found}


@cli.group()
def data() -> None:
    """The data sets: what there is, how large, under which licence, and whether it is here."""


@data.command("list")
@DATA_DIR
def list_data(data_dir: Path | None) -> None:
    """Each data set with its size, licence, use, place and state."""
    from infocam_utils.data import downloads

    for row in downloads.status(data_dir):
        click.echo("{name}: {state}\n  {size}, {licence}\n  for: {purpose}\n  in: {path}".format(**row))


@data.command()
@click.argument("name")
@click.option("--url", help="Another place to fetch it from, also file://.")
@click.option("--sha256", help="The checksum to expect of it.")
@click.option("--into", help="Name of the folder to unpack into.")
@DATA_DIR
def get(name: str, url: str | None, sha256: str | None, into: str | None, data_dir: Path | None) -> None:
    """Fetch, verify and unpack the data set NAME."""
    from infocam_utils.data import downloads
    from infocam_utils.data.sets import SETS

    if name not in SETS:
        raise Refused(f"unknown data set {name!r}; there are {', '.join(SETS)}")
    with _one_line(), click.progressbar(length=1, label=name, file=sys.stderr) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        where = downloads.get(name, data_dir, url, sha256, progress, into)
    click.echo(f"{name} is in {where}")


@cli.command()
@click.argument("photos", nargs=-1, required=True, type=PATH)
@click.option("--model", required=True, help="A classifier of torchvision's by its name, or timm:NAME.")
@click.option("--weights", help="A state dict, or 'imagenet', which is downloaded.")
@click.option("--classes", type=PATH, help="File of class names, one a line.  [default: ImageNet's]")
@click.option("--class", "label", help="The class to explain, a name or number.  [default: the likeliest]")
@click.option(
    "--against",
    multiple=True,
    help="What it is held against: a name or number, may be given several times; others, least_likely, "
    "runner_up.  [default: runner_up]",
)
@click.option("--region", default=1, show_default=True, help="Cells of the region sum.")
@click.option("--layer", help="Module at which the gradient is taken.  [default: found]")
@click.option("-o", "--output", type=PATH, help="Figure of one photo, or folder.  [default: explained]")
@click.option("--json", "as_json", is_flag=True, help="What is found, as JSON, instead of sentences.")
def explain(
    photos: tuple[Path, ...],
    model: str,
    weights: str | None,
    classes: Path | None,
    label: str | None,
    against: tuple[str, ...],
    region: int,
    layer: str | None,
    output: Path | None,
    as_json: bool,
) -> None:
    """Why this class and not that one: where in each of PHOTOS the network finds the difference, in nats."""
    import json

    from infocam_utils.explain import InfoCAM, stock_classifier

    with _one_line(refuse=(ValueError, FileNotFoundError)):
        missing = [str(photo) for photo in photos if not photo.is_file()]
        if missing:
            raise FileNotFoundError(f"there is no picture {', '.join(missing)}")
        names = classes.read_text(encoding="utf-8").splitlines() if classes is not None else None
        network, names, transform = stock_classifier(model, weights, names)
        rivals = [int(name) if name.isdigit() else name for name in against or ("runner_up",)]
        held: Any = rivals[0] if len(rivals) == 1 else rivals
        cam = InfoCAM(network, held, region, layer=layer, classes=names, transform=transform)
        single = len(photos) == 1 and output is not None and bool(output.suffix)
        folder = Path() if single else (output or Path("explained"))
        folder.mkdir(parents=True, exist_ok=True)
        found = []
        with click.progressbar(photos, label=model, file=sys.stderr, hidden=len(photos) == 1) as bar:
            for photo in bar:
                wanted = int(label) if label is not None and label.isdigit() else label
                made = cam(photo, wanted)
                place = output if single and output is not None else folder / f"{photo.stem}.png"
                made.save(place)
                found.append(made.facts(0) | {"photo": str(photo), "figure": str(place)})
                if not as_json:
                    click.echo(f"{photo}: {made.sentences()[0]}; {place}")
    if as_json:
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))


def main() -> None:
    """Entry point: errors are one line, an interrupt is no traceback."""
    try:
        cli(prog_name="infocam")
    except ModuleNotFoundError as error:
        extra = "timm" if error.name == "timm" else "notebooks"
        sys.exit(f"Error: {error}; pip install 'infocam[{extra}]' brings what this command needs")
