"""Files that are imported, and whose quota an image counts for.

Revision ID: 5
"""

import sqlalchemy as sa
from alembic import op

revision = "5"
down_revision = "4"


def upgrade() -> None:
    """Make the columns."""
    file = sa.Column("file", sa.Text, nullable=False, server_default="")
    op.add_column("jobs", file)
    brought = sa.Column("brought", sa.BigInteger, nullable=False, server_default="-1")
    op.add_column("images", brought)
