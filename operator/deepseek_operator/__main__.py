"""`dsv3-operator`: read the settings, connect, watch, and stop cleanly on SIGTERM."""

import argparse
import asyncio
import logging
import sys
from datetime import UTC, datetime

import kopf
from pydantic import ValidationError

from deepseek_operator import __version__, app, kube
from deepseek_operator.errors import ConnectError
from deepseek_operator.metrics import Metrics
from deepseek_operator.reconcile import Reconciler
from deepseek_operator.settings import Settings
from deepseek_operator.workers import Workers


def main() -> None:
    """Run the operator until it is told to stop; exit 2 where a setting is wrong or no cluster is named."""
    parser = argparse.ArgumentParser(prog="dsv3-operator", description=__doc__, epilog="Settings: docs/operator.md.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.parse_args()
    try:
        settings = Settings()
    except ValidationError as error:
        for problem in error.errors():
            sys.stderr.write(f"DSV3_{str(problem['loc'][0]).upper()}: {problem['msg']}\n")
        sys.exit(2)
    kopf.configure(verbose=settings.log_level == "DEBUG")
    logging.getLogger().setLevel(settings.log_level)
    # kopf reports each event that it hands over; what the operator does about them is said by its own loggers.
    logging.getLogger("kopf.objects").setLevel(logging.WARNING)
    # Each probe would be a line.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)
    try:
        asyncio.run(run(settings))
    except ConnectError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)


async def run(settings: Settings) -> None:
    """Connect the parts: watches feed the queue, the queue calls the reconciler."""
    metrics = Metrics()
    metrics.serve(settings.metrics_port)
    connection = await kube.connect(metrics.count_write)
    reconciler = Reconciler(connection, settings, lambda: datetime.now(UTC))
    workers = Workers(reconciler.reconcile, parallel=settings.workers, resync=settings.resync_seconds, metrics=metrics)
    try:
        await app.watch(workers, settings)
    finally:
        await workers.stop()
        await connection.close()


if __name__ == "__main__":
    main()
