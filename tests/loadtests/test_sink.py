import pytest
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from loadtests.sink import count_records


def test_records_of_all_scopes_and_resources_are_counted() -> None:
    """The walk finds what the official messages hold, short and long."""
    message = ExportLogsServiceRequest()
    for scopes in ((2, 3), (5,), ()):
        resource = message.resource_logs.add(schema_url="https://example.com/schema")
        resource.resource.attributes.add(key="service.name").value.string_value = "x"
        for records in scopes:
            scope = resource.scope_logs.add()
            scope.scope.name = "s"
            for i in range(records):
                scope.log_records.add(time_unix_nano=i).body.string_value = "y" * 300

    assert count_records(message.SerializeToString()) == 10


def test_an_empty_message_holds_no_record() -> None:
    """A message without any field is a message."""
    assert count_records(b"") == 0


@pytest.mark.parametrize("broken", [b"\x0a", b"\x0a\x05ab", b"\x0b"], ids=["key", "cut", "group"])
def test_bytes_that_are_no_message_are_refused(broken: bytes) -> None:
    """A sink that guessed would hide lost records."""
    with pytest.raises(ValueError, match=r"."):
        count_records(broken)
