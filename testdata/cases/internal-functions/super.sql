CREATE FUNCTION shout(text) RETURNS text LANGUAGE internal IMMUTABLE STRICT AS 'upper';
CREATE FUNCTION alike(text, text) RETURNS real LANGUAGE c IMMUTABLE STRICT AS '$libdir/pg_trgm', 'similarity';
ALTER FUNCTION shout(text) OWNER TO app_owner; ALTER FUNCTION alike(text, text) OWNER TO app_owner;
