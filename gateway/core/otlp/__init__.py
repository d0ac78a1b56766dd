"""OTLP on the wire: protobuf by hand, for what is encoded, framed and read again by the million."""
