-- A role as PlanetScale gives it. Run in its database, as a superuser.
CREATE ROLE planetscale_demo LOGIN NOSUPERUSER INHERIT CREATEDB CREATEROLE REPLICATION BYPASSRLS PASSWORD 'as-planetscale-gives-it';
GRANT pg_monitor, pg_signal_backend, pg_read_all_data, pg_write_all_data, pg_checkpoint, pg_create_subscription, pg_maintain TO planetscale_demo;
GRANT SET ON PARAMETER session_replication_role TO planetscale_demo;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO planetscale_demo', current_database()); END $$;
