"""The first schema: images, names, access lists, jobs, lookups.

Revision ID: 1
"""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "images",
        sa.Column("digest", sa.String(135), primary_key=True),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("pulled", sa.Float, nullable=False),
        sa.Column("used", sa.Float, nullable=False),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
    )
    op.create_table(
        "names",
        sa.Column("platform", sa.String(32), primary_key=True),
        sa.Column("name", sa.String(512), primary_key=True),
        sa.Column(
            "digest",
            sa.String(135),
            sa.ForeignKey("images.digest", ondelete="CASCADE"),
            nullable=False,
        ),
        sa.Column("pulled", sa.Float, nullable=False),
    )
    op.create_index("names_digest", "names", ["digest"])
    op.create_table(
        "grants",
        sa.Column(
            "digest",
            sa.String(135),
            sa.ForeignKey("images.digest", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("kind", sa.String(8), primary_key=True),
        sa.Column("id", sa.BigInteger, primary_key=True),
        sa.Column("owner", sa.Boolean, nullable=False),
    )
    _jobs()
    op.create_table(
        "lookups",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("uid", sa.BigInteger, nullable=False),
        sa.Column("user", sa.String(64), nullable=False),
        sa.Column("system", sa.String(64), nullable=False),
        sa.Column("type", sa.String(16), nullable=False),
        sa.Column("tag", sa.String(512), nullable=False),
        sa.Column("digest", sa.String(135), nullable=False),
    )
    op.create_index("lookups_time", "lookups", ["time"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("key", sa.String(600), nullable=False),
        sa.Column("platform", sa.String(32), nullable=False),
        sa.Column("name", sa.String(512), nullable=False),
        sa.Column("uid", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("message", sa.Text, nullable=False),
        sa.Column("digest", sa.String(135), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("due", sa.Float, nullable=False),
        sa.Column("created", sa.Float, nullable=False),
        sa.Column("changed", sa.Float, nullable=False),
        sa.Column("secret", sa.Boolean, nullable=False),
        sa.Column("access", sa.Text, nullable=False),
    )
    op.create_index("jobs_key", "jobs", ["key"])
    op.create_index("jobs_state", "jobs", ["state"])
