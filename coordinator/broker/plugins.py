"""amqtt's two extension points: who a client is, and which topics it may use."""

from typing import Any

from amqtt.contexts import Action
from amqtt.plugins.base import BaseAuthPlugin, BaseTopicPlugin
from amqtt.session import Session

from coordinator.broker import acl


def common_name(tls: Any) -> str | None:
    """The common name of a client's verified certificate, None without one or with more than one.

    Args:
        tls: the connection's `ssl.SSLObject`; its handshake has verified the certificate against our authority.
    """
    certificate = tls.getpeercert() if tls is not None else None
    if not certificate:
        return None
    names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
    return names[0] if len(names) == 1 else None


def certificate_serial(tls: Any) -> int | None:
    """The serial number of a client's verified certificate, None without one."""
    certificate = tls.getpeercert() if tls is not None else None
    return int(certificate["serialNumber"], 16) if certificate else None


class CertificateAuthentication(BaseAuthPlugin):
    """A client is its certificate: the client id must be the certificate's common name."""

    async def authenticate(self, *, session: Session) -> bool | None:
        """Compare the client id with the certificate."""
        name = common_name(session.ssl_object)
        return name is not None and acl.known(name) and session.client_id == name


class TopicAuthorisation(BaseTopicPlugin):
    """The rules of `acl`; the client id is its proven identity."""

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool | None:
        """Whether the client may publish to a topic, or subscribe to a filter."""
        if session is None or session.client_id is None or topic is None:
            return False
        if action == Action.PUBLISH:
            return acl.may_publish(session.client_id, topic)
        return acl.may_subscribe(session.client_id, topic)
