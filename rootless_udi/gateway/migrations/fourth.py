"""Starts, as their datagrams tell of them.

Revision ID: 4
"""

import sqlalchemy as sa
from alembic import op

revision = "4"
down_revision = "3"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "starts",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("user", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(135), nullable=False),
    )
    op.create_index("starts_time", "starts", ["time"])
