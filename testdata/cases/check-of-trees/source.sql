-- Constraints of partitioned tables and their partitions, of parents and children, under odd names, with comments.
CREATE TABLE visits (id int, at timestamptz, note text, PRIMARY KEY (id),
	CONSTRAINT recent CHECK (at > now() - interval '2 s'), CHECK (note <> '')) PARTITION BY RANGE (id);
COMMENT ON CONSTRAINT recent ON visits IS 'an entry of the moment';
CREATE TABLE visits_1 PARTITION OF visits (CONSTRAINT "its own, ""too""; -- $$ \ /* which is as long as a name may be é" CHECK (at <> now())) FOR VALUES FROM (0) TO (100);
CREATE TABLE visits_2 PARTITION OF visits FOR VALUES FROM (100) TO (200) PARTITION BY RANGE (id);
CREATE TABLE visits_2a PARTITION OF visits_2 FOR VALUES FROM (100) TO (150);
INSERT INTO visits SELECT i, now() - interval '1 ms', 'x' FROM generate_series(50, 120) i;
ALTER TABLE visits ADD CONSTRAINT old CHECK (length(note) > 3) NOT VALID;
ALTER TABLE visits_1 ADD CONSTRAINT only_here CHECK (id > 80) NOT VALID;
CREATE TABLE parent (id int PRIMARY KEY, v int, CONSTRAINT low CHECK (v < 10 OR now() > '2020-01-01'), CONSTRAINT alone CHECK (id > 0 AND now() > '2020-01-01') NO INHERIT);
CREATE TABLE child (PRIMARY KEY (id), extra text, CONSTRAINT low CHECK (v < 10 OR now() > '2020-01-01'), CONSTRAINT written CHECK (extra = current_user)) INHERITS (parent);
CREATE TABLE grandchild (PRIMARY KEY (id)) INHERITS (child);
INSERT INTO parent SELECT i, i FROM generate_series(1, 30) i;
INSERT INTO child SELECT i, i, current_user FROM generate_series(31, 60) i;
INSERT INTO grandchild SELECT i, i, current_user FROM generate_series(61, 90) i;
ALTER TABLE parent ADD CONSTRAINT small CHECK (v < 80) NOT VALID;
ALTER TABLE child VALIDATE CONSTRAINT written;
COMMENT ON CONSTRAINT low ON child IS 'the child''s';
SELECT pg_sleep(2);
