"""The loop from rollout to a federated version on PostgreSQL and Mosquitto, as a production site runs it."""

import pytest

from fieldfare.demo.settings import MODEL
from fieldfare.demo.stations import Stations

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto, pytest.mark.postgresql]


def test_drift_is_noticed_and_answered_with_a_new_version(production_site: Stations) -> None:
    site = production_site
    site._roll_out(site._bundles[1], "all")
    site.watch()
    site.drift()
    run = site._run_of_alert()

    assert run.state == "succeeded"
    version = site.client.get_version(MODEL, int(run.version or 0))
    assert (version.version, version.parents, version.run) == (2, [1], run.id)
    assert version.reference_sha256 is not None
    assert site.client.status().dropped == {}
