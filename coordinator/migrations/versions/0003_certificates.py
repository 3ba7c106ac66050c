"""Every certificate of a device has a row, and a device can be revoked."""

import sqlalchemy as sa
from alembic import op
from cryptography import x509

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Apply."""
    op.add_column("devices", sa.Column("token_used_at", sa.Float(), nullable=True))
    op.add_column("devices", sa.Column("revoked_at", sa.Float(), nullable=True))
    op.add_column("devices", sa.Column("revoked_reason", sa.Text(), nullable=False, server_default=""))
    op.add_column("devices", sa.Column("kicks_left", sa.Integer(), nullable=False, server_default="0"))
    certificates = op.create_table(
        "certificates",
        sa.Column("serial", sa.String(length=40), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("issued_at", sa.Float(), nullable=False),
        sa.Column("expires_at", sa.Float(), nullable=False),
        sa.Column("revoked_at", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("serial", name=op.f("pk_certificates")),
    )
    op.create_index(op.f("ix_certificates_device"), "certificates", ["device"], unique=False)
    op.create_index(op.f("ix_certificates_revoked_at"), "certificates", ["revoked_at"], unique=False)
    connection = op.get_bind()
    connection.execute(sa.text("UPDATE devices SET token_used_at = enrolled_at WHERE certificate_pem IS NOT NULL"))
    enrolled = sa.text("SELECT name, enrolled_at, certificate_pem FROM devices WHERE certificate_pem IS NOT NULL")
    for device, issued_at, pem in connection.execute(enrolled).all():
        certificate = x509.load_pem_x509_certificate(pem.encode())
        row = {"serial": f"{certificate.serial_number:x}", "device": device, "issued_at": issued_at}
        row["expires_at"] = certificate.not_valid_after_utc.timestamp()
        connection.execute(certificates.insert().values(**row))


def downgrade() -> None:
    """Undo."""
    op.drop_index(op.f("ix_certificates_revoked_at"), table_name="certificates")
    op.drop_index(op.f("ix_certificates_device"), table_name="certificates")
    op.drop_table("certificates")
    for column in ("kicks_left", "revoked_reason", "revoked_at", "token_used_at"):
        op.drop_column("devices", column)
