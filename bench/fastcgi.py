"""The FastCGI benchmark: this server beside nginx, before the same php-fpm, and our Python runtime beside flup.

python -m bench.fastcgi                     everything
python -m bench.fastcgi wsgi --quick        one part, in short
python -m bench.fastcgi tune                settings of nginx against each other
python -m bench.fastcgi --help              all options
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from bench import fairness, session, throughput, transfer
from bench import fastcgi_throughput as parts
from bench.fastcgi_servers import FRONTS, NAMES, Flup, Front, PhpFpm, build
from bench.load import CONNECTIONS
from bench.servers import Missing, Running

PARTS = ("throughput", "transfer", "wsgi", "fairness")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.fastcgi", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (default: all), or tune")
    session.add_common_options(parser, NAMES, rounds=5, seconds=4)
    parser.add_argument(
        "--connections",
        default=",".join(map(str, parts.CONNECTIONS)),
        help="of throughput, comma-separated (%(default)s); targets are for these numbers",
    )
    parser.add_argument("--mib", type=int, help="of one transfer (256; quick: 32)")
    given = parser.parse_args()
    given.servers = given.servers.split(",")
    session.refuse_unknown(parser, given.parts, (*PARTS, "tune"))
    session.refuse_unknown(parser, given.servers, NAMES)
    try:
        given.connections = [int(word) for word in given.connections.split(",")]
    except ValueError:
        parser.error("--connections: numbers, separated by commas")
    if min(given.connections) < given.wrk_threads:
        parser.error(f"--connections: at least {given.wrk_threads}, one for each thread of wrk")
    given.parts = given.parts or list(PARTS)
    given.rounds = given.rounds or (2 if given.quick else 5)
    given.seconds = given.seconds or (2.0 if given.quick else 4.0)
    given.mib = given.mib or (32 if given.quick else 256)
    return given


class Benchmark(session.Session):
    """The parts of this benchmark. Servers of one part are stopped before those of the next are started."""

    def with_fronts(self, wanted: Sequence[Front], path: str, use: Callable[[Sequence[Running]], None]) -> None:
        servers = self.start([front for front in wanted if front.name in self.given.servers], [path])
        try:
            if servers:
                use(servers)
        finally:
            self.stop(servers)

    def heading(self, what: str, connections: int) -> str:
        given = self.given
        return parts.title(what, connections, given.wrk_threads, given.rounds, given.seconds)

    def measure(self, servers: Sequence[Running], path: str, connections: int) -> list[throughput.Result]:
        given = self.given
        return throughput.measure(self.wrk, servers, path, given.rounds, given.seconds, connections)

    def php(self, name: str, fronts: Sequence[Front]) -> None:
        kept: dict[str, object] = {}

        def use(servers: Sequence[Running]) -> None:
            for connections in self.given.connections:
                found = self.measure(servers, parts.PHP_PAGE, connections)
                heading = self.heading("php-fpm, hello page", connections)
                self.show(*parts.php_report(heading, fronts, found, connections))
                kept[str(connections)] = throughput.as_json(found)

        self.with_fronts(fronts, parts.PHP_PAGE, use)
        self.results[name] = kept

    def throughput(self) -> None:
        self.php("throughput", parts.php_fronts(self.given.gateway_options))

    def tune(self) -> None:
        self.php("tune", parts.php_candidates())

    def wsgi(self) -> None:
        def use(servers: Sequence[Running]) -> None:
            found = self.measure(servers, parts.WSGI_PAGE, CONNECTIONS)
            self.show(*parts.wsgi_report(self.heading("WSGI, hello", CONNECTIONS), found))
            self.results["wsgi"] = throughput.as_json(found)

        self.with_fronts(parts.wsgi_fronts(self.given.gateway_options), parts.WSGI_PAGE, use)

    def transfer(self) -> None:
        given = self.given

        def use(servers: Sequence[Running]) -> None:
            found = transfer.measure(servers, mib=given.mib, rounds=given.rounds, patience=given.wait_quiet)
            self.show(*transfer.report(found, given.mib))
            self.results["transfer"] = transfer.as_json(found)

        self.with_fronts(transfer.fronts(given.gateway_options), parts.PHP_PAGE, use)

    def fairness(self) -> None:
        kept: dict[str, object] = {}
        for case in fairness.CASES:

            def use(servers: Sequence[Running], case: fairness.Case = case) -> None:
                found = fairness.measure(
                    self.children,
                    servers,
                    case,
                    rounds=max(1, self.given.rounds // 2),
                    seconds=self.given.seconds,
                    patience=self.given.wait_quiet,
                )
                self.show(*fairness.report(case, found, self.given.seconds))
                kept[case.label] = fairness.as_json(found)

            self.with_fronts(case.fronts(self.given.gateway_options), parts.PHP_PAGE, use)
        self.results["fairness"] = kept

    def run(self) -> None:
        for backend in (PhpFpm(), Flup("forked")):
            try:
                print(f"  behind them: {backend.version()}", flush=True)
            except Missing as error:
                print(f"  {error}", flush=True)
        for name, part in (
            ("tune", self.tune),
            ("throughput", self.throughput),
            ("transfer", self.transfer),
            ("wsgi", self.wsgi),
            ("fairness", self.fairness),
        ):
            if name in self.given.parts:
                part()


def main() -> int:
    return session.run(arguments(), FRONTS, build, Benchmark)


if __name__ == "__main__":
    sys.exit(main())
