-- A schema of the kinds that applications have, small enough for every run of the tests.
CREATE TYPE mood AS ENUM ('calm', 'busy', 'off duty');
CREATE TYPE place AS (lat float8, lon float8);
CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%' OR VALUE IN ('a@b', 'c@d'));
CREATE SCHEMA billing;
CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.updated_at := now(); RETURN NEW; END $$;
CREATE TABLE accounts (
  id bigserial PRIMARY KEY, name varchar(20) NOT NULL, contact email, state mood NOT NULL DEFAULT 'calm', tags text[] NOT NULL DEFAULT '{}',
  moods mood[], home place, settings jsonb NOT NULL DEFAULT '{}', balance numeric(10, 2), parent_id bigint REFERENCES accounts,
  updated_at timestamptz, CONSTRAINT accounts_state_reason CHECK (state <> 'off duty' OR balance IS NULL OR balance < 1000000));
CREATE UNIQUE INDEX accounts_name ON accounts (lower(name)) WHERE parent_id IS NULL;
CREATE TRIGGER stamp BEFORE INSERT OR UPDATE ON accounts FOR EACH ROW EXECUTE FUNCTION stamp();
CREATE TABLE billing.invoices (
  account_id bigint NOT NULL REFERENCES accounts ON DELETE CASCADE, number int NOT NULL, kind text NOT NULL CHECK (kind IN ('credit', 'debit')),
  total numeric GENERATED ALWAYS AS (net * 1.19) STORED, net numeric NOT NULL CHECK (net >= 0), PRIMARY KEY (account_id, number));
CREATE TABLE billing.lines (
  id uuid PRIMARY KEY DEFAULT gen_random_uuid(), account_id bigint, number int, period daterange, source inet,
  FOREIGN KEY (account_id, number) REFERENCES billing.invoices ON UPDATE CASCADE);
CREATE TABLE events (id bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL, kind text NOT NULL, body json, PRIMARY KEY (id, at, kind))
  PARTITION BY RANGE (at);
CREATE TABLE events_2025 PARTITION OF events FOR VALUES FROM ('2025-01-01') TO ('2026-01-01') PARTITION BY LIST (kind);
CREATE TABLE events_2025_web PARTITION OF events_2025 FOR VALUES IN ('web');
CREATE TABLE events_rest PARTITION OF events DEFAULT;
CREATE TABLE audit_log (at timestamptz DEFAULT now(), what text);
CREATE MATERIALIZED VIEW totals AS SELECT account_id, sum(total) FROM billing.invoices GROUP BY 1;
CREATE INDEX ON totals (account_id);
CREATE VIEW busy AS SELECT * FROM accounts WHERE state = 'busy';
CREATE STATISTICS accounts_st ON state, balance FROM accounts;
ALTER TABLE accounts ENABLE ROW LEVEL SECURITY;
CREATE POLICY everybody ON accounts USING (true);
CREATE RULE quiet AS ON DELETE TO audit_log DO INSTEAD NOTHING;
