"""Who may speak and listen where. The same rules as Python (embedded broker) and as Mosquitto's ACL file.

A device writes below its own `up`, reads below its own `down` and any `blob`; the coordinator does everything
under `fleet/v1`. Blobs are open to all enrolled devices: a bundle is no secret, and its trust is its signature.
"""

from contract import topics
from contract.errors import TopicError
from coordinator.broker import revoked


def known(name: str) -> bool:
    """Whether a certificate's common name can be an identity here."""
    if name == topics.COORDINATOR:
        return True
    try:
        topics.check_device(name)
    except TopicError:
        return False
    return True


def may_publish(name: str, topic: str) -> bool:
    """Whether `name` may publish to a topic (no wildcards)."""
    if name == topics.COORDINATOR:
        return topic.startswith(f"{topics.PREFIX}/")
    return topic.startswith(f"{topics.PREFIX}/dev/{name}/up/")


def may_subscribe(name: str, topic_filter: str) -> bool:
    """Whether everything that a filter can match is open to `name`."""
    if name == topics.COORDINATOR:
        return topic_filter.startswith(f"{topics.PREFIX}/")
    return topic_filter.startswith((f"{topics.PREFIX}/dev/{name}/down/", f"{topics.PREFIX}/blob/"))


def mosquitto() -> str:
    """The rules as an ACL file; `%u` is the common name of the client's certificate."""
    return f"""# Who may speak and listen where. %u is the common name of a client's certificate.
# The coordinator, under its name; it also tells the dynamic-security plugin whose sessions to cut.
user {topics.COORDINATOR}
topic readwrite {topics.PREFIX}/#
topic write {revoked.CONTROL}

# A device: below its own name, and the blocks of artifacts, which are signed and no secret. Mosquitto warns that the
# last line names nobody; that is meant.
pattern write {topics.PREFIX}/dev/%u/up/#
pattern read {topics.PREFIX}/dev/%u/down/#
pattern read {topics.PREFIX}/blob/#
"""
