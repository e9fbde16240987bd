"""munge credentials that were taken, for all gateways of a database.

Revision ID: 6
"""

import sqlalchemy as sa
from alembic import op

revision = "6"
down_revision = "5"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "credentials",
        sa.Column("mark", sa.String(64), primary_key=True),
        sa.Column("time", sa.Float, nullable=False),
    )
    op.create_index("credentials_time", "credentials", ["time"])
