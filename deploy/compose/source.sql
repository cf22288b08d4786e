-- A role as Heroku gives it, and something to move. Run in its database, as a superuser.
CREATE ROLE u4k2 LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS CONNECTION LIMIT 40 PASSWORD 'as-heroku-gives-it';
GRANT pg_monitor, pg_read_all_stats, pg_signal_backend TO u4k2;
DO $$ BEGIN EXECUTE format('ALTER DATABASE %I OWNER TO u4k2', current_database()); END $$;

SET ROLE u4k2;
CREATE TABLE customers (id bigserial PRIMARY KEY, name text NOT NULL, email text UNIQUE);
CREATE TABLE orders (id bigserial PRIMARY KEY, customer bigint NOT NULL REFERENCES customers, placed timestamptz NOT NULL DEFAULT now(), cents int NOT NULL, note jsonb);
CREATE INDEX ON orders (customer, placed);
INSERT INTO customers (name, email) SELECT 'Customer ' || i, i || '@example.com' FROM generate_series(1, 20000) i;
INSERT INTO orders (customer, placed, cents, note)
SELECT 1 + i % 20000, now() - i * interval '1 minute', 100 + i % 9000, jsonb_build_object('text', repeat(md5(i::text), 4)) FROM generate_series(1, 300000) i;
ANALYZE;
RESET ROLE;
