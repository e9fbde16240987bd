"""Several gateways of one database: who does a job, and what others are told of it.

Revision ID: 3
"""

import sqlalchemy as sa
from alembic import op

revision = "3"
down_revision = "2"


def upgrade() -> None:
    """Make the tables and columns."""
    op.create_table(
        "gateways",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("host", sa.String(255), nullable=False),
        sa.Column("began", sa.Float, nullable=False),
    )
    op.create_table(
        "changes",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("store", sa.String(64), nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
    )
    op.execute("INSERT INTO changes (id, store, number) VALUES (1, '', 0)")
    for name, kind in (("gateway", sa.Integer), ("done", sa.BigInteger), ("total", sa.BigInteger)):
        op.add_column("jobs", sa.Column(name, kind, nullable=False, server_default="0"))
