-- A chain of views: the base is without data now, and had some when those over it were filled.
CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'v' || i FROM generate_series(1, 100) i;
CREATE SCHEMA "Odd ""views""";
CREATE MATERIALIZED VIEW "Odd ""views""".base AS SELECT id, v FROM a;
CREATE MATERIALIZED VIEW z_middle AS SELECT id, count(*) AS n FROM "Odd ""views""".base GROUP BY id;
CREATE UNIQUE INDEX ON z_middle (id);
CREATE MATERIALIZED VIEW b_top AS SELECT sum(n) AS n FROM z_middle;
CREATE VIEW over_base AS SELECT count(*) FROM "Odd ""views""".base;
CREATE MATERIALIZED VIEW never AS SELECT n FROM b_top WITH NO DATA;
CREATE UNIQUE INDEX ON never (n);
REFRESH MATERIALIZED VIEW "Odd ""views""".base WITH NO DATA;
