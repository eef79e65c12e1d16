"""FastCGI 1.0 without I/O: bytes in, events out, on both sides of a connection."""

from fcgi_pool.protocol.application import ApplicationSide
from fcgi_pool.protocol.params import ParamsReader, decode_params, encode_pair, encode_params, params_records
from fcgi_pool.protocol.records import (
    MAX_CONTENT,
    ProtocolError,
    ProtocolStatus,
    RecordReader,
    RecordType,
    Role,
    encode_record,
)
from fcgi_pool.protocol.web_server import (
    ABORT,
    END_OF_STDIN,
    ResponseReader,
    encode_request,
    get_values,
    stdin_records,
)

__all__ = [
    "ABORT",
    "END_OF_STDIN",
    "MAX_CONTENT",
    "ApplicationSide",
    "ParamsReader",
    "ProtocolError",
    "ProtocolStatus",
    "RecordReader",
    "RecordType",
    "ResponseReader",
    "Role",
    "decode_params",
    "encode_pair",
    "encode_params",
    "encode_record",
    "encode_request",
    "get_values",
    "params_records",
    "stdin_records",
]
