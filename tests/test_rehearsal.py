"""What the rehearsal stands on: a drawn archive that reads like the official one and never counts as it."""

import hashlib
import os
from pathlib import Path

import pandas as pd
import pytest
import torch
from rehearsal import COUNTS, children, make_archive, peak_memory, served

from infocam_utils.data import downloads, sets
from infocam_utils.reproduce import claims, results


@pytest.fixture(scope="module")
def got(tmp_path_factory):
    """The drawn archive, small, fetched as a user fetches the official one."""
    folder = tmp_path_factory.mktemp("rehearsal")
    archive = make_archive(folder / "server", per_class=1)
    server, address = served(folder / "server")
    checksum = hashlib.sha256(archive.read_bytes()).hexdigest()
    downloads.get("cub200", folder / "data", url=f"{address}/{archive.name}", sha256=checksum)
    server.shutdown()
    server.server_close()
    return folder / "data"


def test_the_full_set_has_the_official_counts():
    assert [sum(counts) for counts in COUNTS] == [5994, 5794]
    assert [len(counts) for counts in COUNTS] == [200, 200]


def test_the_archive_reads_like_the_official_one(got):
    for split in ("train", "test"):
        images = sets.load_images("cub200", split, got, need_boxes=True)
        assert torch.equal(images.labels, torch.arange(200))
        assert images.class_numbers == list(range(1, 201))
        assert ((images.boxes[:, 2:] - images.boxes[:, :2]) > 20).all()
    colours = {images.images[kind].tobytes() for kind in range(200)}
    assert len(colours) == 200


def test_a_run_on_it_is_no_finding_on_the_papers_data_and_one_on_the_official_archive_is(
    got, tmp_path, monkeypatch
):
    """The same rows get a verdict by themselves once the archive is the official one, by its checksum."""
    monkeypatch.setenv("INFOCAM_DATA", str(got))
    about = {"dataset": "cub200", "method": "pc", "test": "training_shares", "seed": 0}
    rows = pd.DataFrame(
        [
            about | {"metric": "accuracy", "unit": "%", "value": 89.9, "stderr": 0.6},
            about | {"method": "softmax", "metric": "accuracy", "unit": "%", "value": 89.0, "stderr": 0.6},
            {"dataset": "cub200", "metric": "classes", "unit": "", "value": 200.0},
        ]
    )
    ledger = [
        claim
        for claim in claims.load_ledger(Path(__file__).parents[1] / "claims.yml")
        if claim.id == "pc_accuracy_cub"
    ]
    verdicts = []
    for official in (False, True):
        record = (got / "cub200.json").read_text()
        (got / "cub200.json").write_text(
            record.replace('"official": false', f'"official": {str(official).lower()}')
        )
        options = {"parameters": {"profile": "paper"}, "recipes": {"cub200": {"dataset": "cub200"}}}
        path = results.write("03_task", rows, **options, output_dir=tmp_path)
        assert results.read(path).official is official
        verdicts.append(claims.judge(ledger, results.read_all(tmp_path))[0].verdict)
    assert verdicts == ["not attempted", "reproduced"]


def test_the_official_archive_is_known_by_its_own_checksum(got):
    """Without another checksum the drawn archive is refused, so nothing else is ever noted as official."""
    address = (got.parent / "server" / "CUB_200_2011.tgz").as_uri()
    with pytest.raises(ValueError, match="official archive has"):
        downloads.get("cub200", got.parent / "other", url=address)


def test_processes_and_their_memory_are_found():
    assert children(os.getpid())[-1] == os.getpid()
    assert peak_memory(os.getpgrp()) > 10_000_000
