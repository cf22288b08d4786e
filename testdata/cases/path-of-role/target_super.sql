-- As somebody enables it there: the target's role may not.
CREATE SCHEMA ext;
GRANT ALL ON SCHEMA ext TO ps;
ALTER SCHEMA ext OWNER TO ps;
CREATE EXTENSION cube SCHEMA ext;
CREATE EXTENSION earthdistance SCHEMA ext;
