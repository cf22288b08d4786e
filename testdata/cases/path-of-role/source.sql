-- Names without a schema wherever an expression can stand: index, predicate, statistics, partition key, generated column, CHECK, domain, default,
-- trigger, policy, materialised view; in bodies that are strings, and in one that is parsed.
CREATE FUNCTION plain(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT lower(unaccent('unaccent', v)) $$;
CREATE FUNCTION initial(v text) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT left(plain(v), 1) $$;
CREATE FUNCTION attribute(h hstore, k text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN plain(h -> k); END $$;
CREATE FUNCTION atomic(v text) RETURNS text IMMUTABLE BEGIN ATOMIC SELECT plain(v) || '!'; END;
CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.attributes := NEW.attributes || hstore('plain', plain(NEW.name)); RETURN NEW; END $$;
CREATE DOMAIN filled AS text CHECK (initial(VALUE) <> '');
CREATE TABLE people (id serial PRIMARY KEY, name text CHECK (plain(name) <> 'nobody'), label filled DEFAULT initial('Ångström'), attributes hstore DEFAULT '',
  plain_name text GENERATED ALWAYS AS (plain(name)) STORED, lat float8 DEFAULT 52.5, lon float8 DEFAULT 13.4);
CREATE INDEX ON people (plain(name));
CREATE INDEX ON people (attribute(attributes, 'colour'));
CREATE INDEX ON people (atomic(name));
CREATE UNIQUE INDEX ON people (id) WHERE initial(name) = 'z';
CREATE INDEX ON people USING gist (ll_to_earth(lat, lon));
CREATE INDEX ON people USING gin (attributes);
CREATE STATISTICS people_stat ON plain(name), initial(name) FROM people;
CREATE TRIGGER shout BEFORE INSERT ON people FOR EACH ROW EXECUTE FUNCTION shout();
CREATE POLICY mine ON people USING (plain(name) <> 'secret');
CREATE TABLE parts (name text, n int) PARTITION BY LIST (initial(name));
CREATE TABLE parts_z PARTITION OF parts FOR VALUES IN ('z');
CREATE TABLE parts_other PARTITION OF parts DEFAULT;
CREATE TABLE pets (id int PRIMARY KEY, owner int REFERENCES people ON DELETE CASCADE, name filled UNIQUE);
CREATE VIEW plain_people AS SELECT id, plain(name) AS name FROM people;
CREATE MATERIALIZED VIEW names AS SELECT name, count(*) AS n FROM plain_people GROUP BY name;
CREATE MATERIALIZED VIEW ids AS SELECT id FROM people;
INSERT INTO people (name, attributes) SELECT CASE i % 3 WHEN 0 THEN 'Zoë ' WHEN 1 THEN 'Åsa ' ELSE 'Bob ' END || i, hstore('colour', 'É' || i) FROM generate_series(1, 300) i;
INSERT INTO parts SELECT CASE i % 2 WHEN 0 THEN 'Žofie ' ELSE 'Åsa ' END || i, i FROM generate_series(1, 100) i;
INSERT INTO pets SELECT i, i, 'Ñandú ' || i FROM generate_series(1, 50) i;
