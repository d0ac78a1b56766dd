"""The Store on Redis or Valkey: the only room that speaks redis-py.

Every error of the library ends here as StoreUnavailable or Conflict, without the URL's password.
"""

from gateway.adapters.redis.announcements import RedisAnnouncements
from gateway.adapters.redis.audit_log import RedisAuditLog
from gateway.adapters.redis.evidence import RedisEvidence
from gateway.adapters.redis.folds import RedisFolds
from gateway.adapters.redis.following import RedisFollowing
from gateway.adapters.redis.governance import RedisGovernance
from gateway.adapters.redis.history import RedisHistory
from gateway.adapters.redis.store import RedisStore

__all__ = [
    "RedisAnnouncements",
    "RedisAuditLog",
    "RedisEvidence",
    "RedisFolds",
    "RedisFollowing",
    "RedisGovernance",
    "RedisHistory",
    "RedisStore",
]
