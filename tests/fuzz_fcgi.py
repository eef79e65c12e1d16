"""Mutated records for both sides of the FastCGI codec: ``python -m tests.fuzz_fcgi [RECORDS [SEED]]``.

Whatever a peer sends, a reader raises ProtocolError and nothing else, tells of no more bytes than it was given, and
answers with at most twice as many.
"""

from __future__ import annotations

import random
import resource
import sys
from collections.abc import Iterable, Sized
from dataclasses import dataclass

from fcgi_pool.protocol import ApplicationSide, ProtocolError, ResponseReader, Role, encode_params, encode_record
from fcgi_pool.protocol.application import Abort, DataStream, Environment, Params, Stdin
from fcgi_pool.protocol.web_server import Stderr, Stdout, Values

# Records of one conversation, before it is mutated.
LENGTH = 8


@dataclass
class Tally:
    """How many records were mutated, and what became of the conversations."""

    records: int = 0
    refused: int = 0
    finished: int = 0


def _params(rng: random.Random) -> bytes:
    sizes = (0, 1, 5, 127, 128, 300)
    return encode_params(
        (rng.randbytes(rng.choice(sizes)), rng.randbytes(rng.choice(sizes))) for _ in range(rng.randrange(5))
    )


def _request(rng: random.Random) -> list[bytes]:
    """Return the records of requests, not always in the right order."""
    begin = bytes((0, rng.choice((1, 1, 1, 2, 3, 9)), rng.randrange(2))) + bytes(5)
    records = [encode_record(1, 1, begin), encode_record(4, 1, _params(rng)), encode_record(4, 1)]
    records += [encode_record(5, 1, rng.randbytes(rng.choice((1, 9, 200)))), encode_record(5, 1)]
    extra = (
        encode_record(2, 1),
        encode_record(9, 0, encode_params([(b"FCGI_MAX_CONNS", b""), (b"FCGI_MPXS_CONNS", b"")])),
        encode_record(8, 1, rng.randbytes(20)),
        encode_record(1, 2, begin),
        encode_record(77, 0, b"?"),
    )
    while len(records) < LENGTH:
        records.insert(rng.randrange(len(records) + 1), rng.choice(extra))
    return records


def _response(rng: random.Random) -> list[bytes]:
    """Return the records of a response, not always in the right order."""
    choices = (
        encode_record(6, 1, rng.randbytes(rng.choice((1, 8, 300)))),
        encode_record(7, 1, rng.randbytes(12)),
        encode_record(6, 1),
        encode_record(7, 1),
        encode_record(10, 0, encode_params([(b"FCGI_MAX_CONNS", b"4")])),
    )
    return [*(rng.choice(choices) for _ in range(LENGTH - 1)), encode_record(3, 1, bytes(8))]


def _mutate(rng: random.Random, record: bytes) -> bytes:
    """Return a record that differs from a good one in one way."""
    way = rng.randrange(8)
    changed = bytearray(record)
    if way == 0:
        # A byte of the header: version, type, id, lengths.
        changed[rng.randrange(8)] = rng.randrange(256)
    elif way == 1:
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif way == 2:
        del changed[rng.randrange(1, len(changed)) :]
    elif way == 3:
        changed += rng.randbytes(rng.randrange(1, 20))
    elif way == 4:
        return encode_record(rng.randrange(256), rng.choice((0, 1, 1, 2, 65535)), rng.randbytes(rng.randrange(40)))
    elif way == 5:
        # Lengths of a pair that promise much.
        changed[8:12] = rng.choice((b"\xff\xff\xff\xff", b"\x80\x00\x00\x00", b"\x7f\x7f\x00\x00", b"\xff"))
    elif way == 6:
        # More padding than needed.
        extra = rng.randrange(256 - changed[6])
        changed[6] += extra
        changed += bytes(extra)
    else:
        changed *= 2
    return bytes(changed)


class _TextSide(ApplicationSide):
    """The application's side as a worker uses it."""


def _size(pairs: Iterable[tuple[Sized, Sized]]) -> int:
    return sum(len(name) + len(value) for name, value in pairs)


def _feed(rng: random.Random, reader: ApplicationSide | ResponseReader, data: bytes) -> bool:
    """Give a reader the bytes in pieces; return whether it took all of them."""
    told = answered = at = 0
    try:
        while at < len(data):
            size = rng.choice((1, 7, 8, 60, 4096))
            if isinstance(reader, _TextSide):
                variables = reader.receive_request(data[at : at + size])
                told += _size(variables.items()) if variables else 0
            else:
                reader.receive(data[at : at + size])
            at += size
            while event := reader.next_event():
                if isinstance(event, Stdin | DataStream | Stdout | Stderr):
                    told += len(event.data)
                elif isinstance(event, Params):
                    told += _size(event.pairs)
                elif isinstance(event, Environment):
                    told += _size(event.variables.items())
                elif isinstance(event, Values):
                    told += _size(event.values.items())
                elif isinstance(event, Abort) and isinstance(reader, ApplicationSide):
                    reader.end()
            if isinstance(reader, ApplicationSide):
                answered += len(reader.data_to_send())
    except ProtocolError as error:
        assert str(error)
        return False
    finally:
        assert told <= len(data)
        assert answered <= 2 * len(data)
    return True


def _mutate_some(rng: random.Random, conversation: list[bytes]) -> int:
    """Mutate some of the records in place; return how many."""
    changed = rng.randrange(1, 4)
    for index in rng.sample(range(LENGTH), changed):
        conversation[index] = _mutate(rng, conversation[index])
    return changed


def mutated_request(rng: random.Random) -> tuple[bytes, int]:
    """Return what a web server might send, but for some of the records, and how many those are."""
    conversation = _request(rng)
    changed = _mutate_some(rng, conversation)
    return b"".join(conversation), changed


def run(records: int, seed: int) -> Tally:
    """Mutate and read at least so many records."""
    rng = random.Random(seed)
    tally = Tally()
    while tally.records < records:
        is_request = rng.random() < 0.5
        conversation = _request(rng) if is_request else _response(rng)
        changed = _mutate_some(rng, conversation)
        reader: ApplicationSide | ResponseReader = ResponseReader()
        if is_request:
            reader = _TextSide(as_text=True) if rng.random() < 0.5 else ApplicationSide(roles=Role)
        if _feed(rng, reader, b"".join(conversation)):
            tally.finished += 1
        else:
            tally.refused += 1
        tally.records += changed
    return tally


def main() -> None:
    """Run for long, and say what it was."""
    records = int(sys.argv[1]) if len(sys.argv) > 1 else 10**6
    seed = int(sys.argv[2]) if len(sys.argv) > 2 else random.randrange(1 << 32)
    sys.stdout.write(f"seed {seed}\n")
    sys.stdout.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tally = run(records, seed)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 * 1024, f"the peak memory grew by {grown} KiB"
    sys.stdout.write(f"{tally}, peak memory grew by {grown} KiB\n")


if __name__ == "__main__":
    main()
