"""The command ``infocam``: run the notebooks, fetch data, and hold the claims against the records."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from infocam_utils.data.store import atomic_write, checkout
from infocam_utils.reproduce.results import compare_books, read_book


def home(needed_for: str) -> Path:
    found = checkout()
    if found is None:
        raise click.ClickException(
            f"{needed_for} needs a clone of the repository; this is an installed package"
        )
    return found


if TYPE_CHECKING:  # each command imports what it needs, so that help and lists come at once
    from infocam_utils.reproduce.runner import Plan


class Refused(click.ClickException):
    """A request that cannot be: one line, and the exit status of a usage error."""

    exit_code = 2


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="infocam")
def cli() -> None:
    """Neural classifiers as mutual-information estimators: the paper's experiments as notebooks."""


def _pairs(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"expected key=value, was {value!r}")
        pairs[name] = text
    return pairs


@cli.command()
@click.argument("notebooks", nargs=-1)
@click.option("--profile", default="quick", show_default=True, help="Parameter file in notebooks/profiles.")
@click.option("-p", "--set", "overrides", multiple=True, callback=_pairs, metavar="KEY=VALUE",
              help="A parameter of the notebooks; may be given several times.")  # fmt: skip
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="[default: runs/NAME]")
@click.option("--name", help="What to call this run.  [default: the profile]")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets and caches lie.")
@click.option("--notebooks", "folder", type=click.Path(path_type=Path), help="Folder of notebooks.")
@click.option("--fresh", is_flag=True, help="Start over: use no finished notebook and no cached network.")
@click.option("--update", is_flag=True, help="For maintainers: put the records into results/NAME and, where"
              " all parameters are the defaults, the executed notebooks into their folder.")  # fmt: skip
def run(
    notebooks: tuple[str, ...],
    profile: str,
    overrides: Any,
    output: Path | None,
    name: str | None,
    data_dir: Path | None,
    folder: Path | None,
    fresh: bool,
    update: bool,
) -> None:
    """Run NOTEBOOKS (all without any; "03" is enough of a name) and write everything to one folder.

    A second run goes on where the first stopped and leaves what is done and unchanged.
    """
    from infocam_utils.reproduce import runner as plans

    try:
        chosen = plans.plan(notebooks, profile, overrides, folder)
    except plans.PlanError as error:
        raise Refused(str(error)) from error
    from infocam_utils.reproduce import report as reports
    from infocam_utils.reproduce import runner as pipeline

    name = name or profile
    root = checkout() or Path.cwd()
    output = (output or root / "runs" / name).absolute()
    results = (chosen[0].path.parents[1] if folder else root) / "results"

    def put_back(plan: Plan) -> None:
        records = output / "records" / f"{plan.name}.json"
        if records.exists():
            atomic_write(results / name / records.name, records.read_bytes())
        changed = sorted(k for k, v in plan.parameters.items() if v != plan.defaults[k])
        if changed:
            click.echo(f"{plan.name}: the notebook stays, since it ran with other {', '.join(changed)}")
        else:
            executed = output / "notebooks" / plan.path.name
            atomic_write(plan.path, reports.clean_notebook(executed, plan.path))

    try:
        manifest = pipeline.run(
            chosen, output, name=name, results=results, data_dir=data_dir, fresh=fresh,
            command=shlex.join(["infocam", *sys.argv[1:]]), after=put_back if update else None,
        )  # fmt: skip
    except pipeline.RunError as error:
        raise click.ClickException(str(error)) from error
    states = [manifest["notebooks"].get(plan.name, {}).get("status") for plan in chosen]
    click.echo(f"{states.count('done')} of {len(chosen)} notebooks done; see {output / 'index.html'}")
    if "interrupted" in states:
        click.echo("interrupted; what is finished is kept, and the same command goes on from there", err=True)
        sys.exit(130)
    sys.exit(0 if states.count("done") == len(chosen) else 1)


@cli.command("claims")
@click.option("--check", is_flag=True, help="Fail when README or notebook 05 disagree with the records.")
@click.option("--write", is_flag=True, help="Render the scorecard into README.md.")
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), help="[default: the clone]"
)
def claims_command(check: bool, write: bool, root: Path | None) -> None:
    """The paper's claims and what the committed records say of them."""
    from infocam_utils.reproduce import claims, realdata

    root = root or home("the ledger")
    try:
        if write:
            realdata.write(root)
            click.echo(f"wrote {claims.write_readme(root)}")
        if check:
            problems = claims.check(root) + realdata.check(root)
            if problems:
                raise click.ClickException("; ".join(problems))
            click.echo("README, notebook 05 and ledger agree with the records")
        if not (check or write):
            for row in claims.scorecard(root):
                lines = [f"{row.claim.id}: {row.verdict}" + (f" (but {row.dissent})" if row.dissent else "")]
                cells = claims.table([row]).iloc[0]
                lines += [f"  {title.lower()}: {cells[title]}".replace("\n", "\n    ") for title in
                          ("Claim", "Paper", "Ours [95 %]", "Command", "Remark") if cells[title]]  # fmt: skip
                click.echo("\n".join(lines))
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


@cli.command()
@click.argument("committed", type=click.Path(exists=True, path_type=Path))
@click.argument("fresh", type=click.Path(exists=True, path_type=Path))
def compare(committed: Path, fresh: Path) -> None:
    """Compare records by number, each within its stated tolerance: two files, or two folders of them."""
    pairs = [(committed, fresh)]
    if committed.is_dir():
        pairs = [(p, fresh / p.relative_to(committed)) for p in sorted(committed.rglob("*.json"))]
    try:
        found = [
            f"{old.stem}: {d}" for old, new in pairs for d in compare_books(read_book(old), read_book(new))
        ]
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    if not pairs:
        raise click.ClickException(f"no records in {committed}")
    for difference in found:
        click.echo(difference)
    if found:
        raise click.ClickException(f"{len(found)} differences")
    click.echo(f"{len(pairs)} files of records agree within their tolerances")


@cli.group()
def data() -> None:
    """The data sets: what there is, how large, under which licence, and whether it is here."""


@data.command("list")
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie.")
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
@click.option("--data-dir", type=click.Path(path_type=Path), help="Where data sets lie.")
def get(name: str, url: str | None, sha256: str | None, into: str | None, data_dir: Path | None) -> None:
    """Fetch, verify and unpack the data set NAME."""
    from infocam_utils.data import downloads

    with click.progressbar(length=1, label=name, file=sys.stderr) as bar:

        def progress(done: int, total: int | None) -> None:
            bar.length = total
            bar.update(done - bar.pos)

        try:
            where = downloads.get(name, data_dir, url, sha256, progress, into)
        except (ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
    click.echo(f"{name} is in {where}")


def main() -> None:
    """Entry point: errors are one line, an interrupt is no traceback."""
    cli(prog_name="infocam")
