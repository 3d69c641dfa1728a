"""Files at any URL: written whole or not at all, cached, locked, sealed; and what is said when that fails."""
