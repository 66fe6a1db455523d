"""The first tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = branch_labels = depends_on = None

ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def upgrade() -> None:
    op.create_table(
        "devices",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("role", sa.String(8), nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("seen", sa.Double),
        sa.Column("skew", sa.Double),
        sa.Column("status", sa.Text),
        sa.PrimaryKeyConstraint("id", name="pk_devices"),
        sa.UniqueConstraint("name", name="uq_devices_name"),
    )
    op.create_table(
        "keys",
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("device_id", ID, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("until", sa.Double),
        sa.PrimaryKeyConstraint("hash", name="pk_keys"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_keys_device_id"),
    )
    op.create_table(
        "cameras",
        sa.Column("device_id", ID, nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("status", sa.Text),
        sa.Column("seen", sa.Double),
        sa.Column("captured", sa.Double),
        sa.Column("label", sa.Text),
        sa.Column("confidence", sa.Double),
        sa.PrimaryKeyConstraint("device_id", "name", name="pk_cameras"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_cameras_device_id"),
    )
    op.create_table(
        "predictions",
        sa.Column("id", ID, nullable=False),
        sa.Column("device_id", ID, nullable=False),
        sa.Column("camera", sa.String(64), nullable=False),
        sa.Column("boot", sa.String(64), nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("captured", sa.Double, nullable=False),
        sa.Column("received", sa.Double, nullable=False),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("top", sa.Text, nullable=False),
        sa.Column("encode_ms", sa.Double, nullable=False),
        sa.Column("edge_ms", sa.Double, nullable=False),
        sa.Column("network_ms", sa.Double),
        sa.Column("cloud_ms", sa.Double, nullable=False),
        sa.Column("latent", sa.LargeBinary),
        sa.PrimaryKeyConstraint("id", name="pk_predictions"),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name="fk_predictions_device_id"),
        sa.UniqueConstraint("device_id", "camera", "boot", "seq", name="uq_predictions_device_id_camera_boot_seq"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_predictions_captured", "predictions", ["captured"])
    op.create_index("ix_predictions_received", "predictions", ["received"])


def downgrade() -> None:
    for table in ("predictions", "cameras", "keys", "devices"):
        op.drop_table(table)
