import msgspec

from gateway.control.status import Acknowledgement, Standing, read_acknowledgements, status_of
from gateway.ports import EndpointReport, VersionReport

NEWEST = 7


def ack(
    process: str,
    revision: int = NEWEST,
    *,
    epoch: int = 1,
    leads: bool = False,
    lagging: str | None = None,
    failed: str | None = None,
) -> Acknowledgement:
    """What a process says."""
    versions = () if failed is None else (VersionReport("m", 2, "failed", failed),)
    return Acknowledgement(
        process=process,
        at=100.0,
        epoch=epoch,
        revision=revision,
        source="redis",
        ready=True,
        leads=leads,
        endpoints={"m": EndpointReport(revision=revision, lagging=lagging)},
        versions=(VersionReport("m", 1, "ready"), *versions),
    )


def test_a_promotion_is_complete_when_all_serve_it() -> None:
    """Processes behind the revision, or with an endpoint that lags, are counted as not there."""
    others = [
        ack("b"),
        ack("c", 6),
        ack("d", lagging="version 2 is loading", failed="out of memory"),
        ack("e", 8),
        ack("a", 3, leads=True),
        ack("f", 9, epoch=0),
    ]
    status = status_of(Standing(process="a"), ack("a"), others, newest=NEWEST, now=103.0)
    assert status["promotion"] == {
        "revision": 7,
        "complete": 3,
        "of": 6,
        "text": "promotion complete on 3 of 6",
    }
    assert status["complete"] is False
    assert [process["name"] for process in status["processes"]] == list("abcdef")
    assert status["endpoints"]["m"]["lagging"] == {
        "c": "serves revision 6",
        "d": "version 2 is loading",
    }
    late = status["processes"][3]
    assert late["failed"] == [{"model": "m", "number": 2, "reason": "out of memory"}]
    assert late["age_s"] == 3.0


def test_the_leader_is_named() -> None:
    """Whoever says that it leads is the leader; nobody may."""
    own, standing = ack("a"), Standing(process="a")
    led = status_of(standing, own, [ack("b", leads=True)], newest=NEWEST, now=0.0)
    assert led["leader"] == "b"
    assert status_of(standing, own, [], newest=NEWEST, now=0.0)["leader"] is None


def test_a_lone_process_is_complete_by_itself() -> None:
    """Without the store, a process knows of itself only."""
    status = status_of(Standing(process="a"), ack("a"), [], newest=NEWEST, now=0.0)
    assert status["promotion"]["text"] == "promotion complete on 1 of 1"
    assert status["complete"] is True
    assert status["rejected"] is None
    msgspec.json.encode(status)


def test_what_is_not_served_yet_is_not_complete() -> None:
    """Everybody serves one revision, and a higher one is known here."""
    status = status_of(Standing(process="a"), ack("a"), [], newest=NEWEST + 1, now=0.0)
    assert (status["revision"], status["newest"], status["complete"]) == (7, 8, False)


def test_documents_that_cannot_be_read_are_left_out() -> None:
    """One bad document does not hide the others; fields that are new here are ignored."""
    good = msgspec.json.decode(msgspec.json.encode(ack("b")))
    documents = {
        "a": b"{",
        "b": msgspec.json.encode({**good, "new": 1}),
        "c": b'{"process": 1}',
        "d": b"\xff",
    }
    assert read_acknowledgements(documents) == [ack("b")]
