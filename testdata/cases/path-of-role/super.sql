-- The role's path finds a schema of its own name ("$user") and extensions in schemas of their own. On the target the role has another name.
CREATE SCHEMA app_owner AUTHORIZATION app_owner;
CREATE SCHEMA ext AUTHORIZATION app_owner;
CREATE EXTENSION hstore SCHEMA ext;
CREATE EXTENSION unaccent SCHEMA ext;
CREATE EXTENSION cube SCHEMA ext;
CREATE EXTENSION earthdistance SCHEMA ext;
ALTER ROLE app_owner SET search_path = "$user", public, ext;
ALTER DATABASE app SET search_path = public;
