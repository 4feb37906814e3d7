"""How the lock is got, held and contested, in any storage."""
