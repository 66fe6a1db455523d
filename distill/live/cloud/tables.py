"""What is kept: who may send or read, how cameras are, and who saw what when. `migrations/` makes these tables."""

from __future__ import annotations

import sqlalchemy as sa

META = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)
Seconds = sa.Double  # since 1970, UTC
Id = sa.BigInteger().with_variant(sa.Integer, "sqlite")  # SQLite numbers whole numbers of this type alone

DEVICE, VIEWER = "device", "viewer"

devices = sa.Table(
    "devices",
    META,
    sa.Column("id", Id, primary_key=True),
    sa.Column("name", sa.String(64), nullable=False, unique=True),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("created", Seconds, nullable=False),
    sa.Column("seen", Seconds),
    sa.Column("skew", Seconds),
    sa.Column("status", sa.Text),
)
keys = sa.Table(
    "keys",
    META,
    sa.Column("hash", sa.String(64), primary_key=True),
    sa.Column("device_id", Id, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("created", Seconds, nullable=False),
    sa.Column("until", Seconds),
)
cameras = sa.Table(
    "cameras",
    META,
    sa.Column("device_id", Id, sa.ForeignKey("devices.id"), primary_key=True),
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("status", sa.Text),
    sa.Column("seen", Seconds),
    sa.Column("captured", Seconds),
    sa.Column("label", sa.Text),
    sa.Column("confidence", sa.Double),
)
predictions = sa.Table(
    "predictions",
    META,
    sa.Column("id", Id, primary_key=True),
    sa.Column("device_id", Id, sa.ForeignKey("devices.id"), nullable=False),
    sa.Column("camera", sa.String(64), nullable=False),
    sa.Column("boot", sa.String(64), nullable=False),
    sa.Column("seq", sa.BigInteger, nullable=False),
    sa.Column("captured", Seconds, nullable=False),
    sa.Column("received", Seconds, nullable=False),
    sa.Column("label", sa.Text, nullable=False),
    sa.Column("confidence", sa.Double, nullable=False),
    sa.Column("top", sa.Text, nullable=False),
    sa.Column("encode_ms", sa.Double, nullable=False),
    sa.Column("edge_ms", sa.Double, nullable=False),
    sa.Column("network_ms", sa.Double),
    sa.Column("cloud_ms", sa.Double, nullable=False),
    sa.Column("latent", sa.LargeBinary),
    sa.UniqueConstraint("device_id", "camera", "boot", "seq"),
    sa.Index(None, "captured"),
    sa.Index(None, "received"),
    sqlite_autoincrement=True,  # a number that was forgotten is never given again
)
