"""The tables of the gateway's database. `migrations/` has the steps that make them.

Times are Unix seconds. A name is one of `store.find.name_of`, a platform `Platform.key`.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
)

METADATA = MetaData()

IMAGES = Table(
    "images",
    METADATA,
    Column("digest", String(135), primary_key=True),
    Column("size", BigInteger, nullable=False),
    # When it was last pulled, or a pull found that it is still what its name means.
    Column("pulled", Float, nullable=False),
    # When it was last looked up.
    Column("used", Float, nullable=False),
    # Whether everybody may read it; otherwise `grants` has who may.
    Column("public", Boolean, nullable=False),
    # What Shifter's clients ask for, as JSON: env, entry, workdir, labels.
    Column("facts", Text, nullable=False),
    # The user whose job brought it, -1 for none; it counts for his quota.
    Column("brought", BigInteger, nullable=False, server_default="-1"),
)

NAMES = Table(
    "names",
    METADATA,
    Column("platform", String(32), primary_key=True),
    Column("name", String(512), primary_key=True),
    Column("digest", ForeignKey("images.digest", ondelete="CASCADE"), nullable=False),
    Column("pulled", Float, nullable=False),
    Index("names_digest", "digest"),
)

GRANTS = Table(
    "grants",
    METADATA,
    Column("digest", ForeignKey("images.digest", ondelete="CASCADE"), primary_key=True),
    # "user" or "group".
    Column("kind", String(8), primary_key=True),
    Column("id", BigInteger, primary_key=True),
    # Whether the registry let this user have it, who may then share it further.
    Column("owner", Boolean, nullable=False),
)

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # What makes two requests one job: platform and name, and the user where credentials came along.
    Column("key", String(600), nullable=False),
    Column("platform", String(32), nullable=False),
    Column("name", String(512), nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("message", Text, nullable=False),
    Column("digest", String(135), nullable=False),
    Column("attempts", Integer, nullable=False),
    # Not to be begun before this time: the pause after an attempt that failed.
    Column("due", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("changed", Float, nullable=False),
    # Whether credentials came with it. They are in the gateway's memory alone.
    Column("secret", Boolean, nullable=False),
    # Who shall be able to read the image, as JSON: catalogue.Wanted.
    Column("access", Text, nullable=False),
    # The gateway that does it, or alone can do it (credentials): `nodes`. 0: any.
    Column("gateway", Integer, nullable=False, server_default="0"),
    # Bytes of layers that were fetched, and all, as far as other gateways are told.
    Column("done", BigInteger, nullable=False, server_default="0"),
    Column("total", BigInteger, nullable=False, server_default="0"),
    # The file to import; "" for a pull.
    Column("file", Text, nullable=False, server_default=""),
    Index("jobs_key", "key"),
    Index("jobs_state", "state"),
)

LOOKUPS = Table(
    "lookups",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", Float, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("user", String(64), nullable=False),
    Column("system", String(64), nullable=False),
    Column("type", String(16), nullable=False),
    Column("tag", String(512), nullable=False),
    Column("digest", String(135), nullable=False),
    Index("lookups_time", "time"),
)

STARTS = Table(
    "starts",
    METADATA,
    # What tells one datagram from another; one that arrives twice is one row.
    Column("id", String(32), primary_key=True),
    Column("time", Float, nullable=False),
    # A uid, its hash ("h..."), or "-" where the site does not want to know.
    Column("user", String(32), nullable=False),
    # The digest of an image of the catalogue, "" for any other.
    Column("digest", String(135), nullable=False),
    Index("starts_time", "time"),
)

TOKENS = Table(
    "tokens",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    # The SHA-256 of the token, which has 256 random bits: nothing slower is needed.
    Column("mark", String(64), nullable=False, unique=True),
    Column("uid", BigInteger, nullable=False),
    # One of `tokens.SCOPES`.
    Column("scope", String(8), nullable=False),
    Column("note", String(200), nullable=False),
    Column("created", Float, nullable=False),
    Column("expires", Float, nullable=False),
)

# munge credentials that a gateway of a shared database has taken; empty in SQLite, whose gateway's
# own munged knows them.
CREDENTIALS = Table(
    "credentials",
    METADATA,
    # The credential's SHA-256.
    Column("mark", String(64), primary_key=True),
    Column("time", Float, nullable=False),
    Index("credentials_time", "time"),
)

AUDIT = Table(
    "audit",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("time", Float, nullable=False),
    Column("uid", BigInteger, nullable=False),
    Column("user", String(64), nullable=False),
    # "pull" (by a registry's word), "share", "unshare", "expire", "token", "revoke".
    Column("action", String(16), nullable=False),
    Column("what", String(512), nullable=False),
    Column("detail", Text, nullable=False),
)

# Of a database that several gateways share; empty in SQLite.
GATEWAYS = Table(
    "gateways",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("host", String(255), nullable=False),
    Column("began", Float, nullable=False),
)

# One row: which store this database belongs to, and how often it was changed.
CHANGES = Table(
    "changes",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store", String(64), nullable=False),
    Column("number", BigInteger, nullable=False),
)
