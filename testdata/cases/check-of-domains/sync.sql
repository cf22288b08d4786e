VACUUM FULL addresses;
INSERT INTO countries VALUES ('es');
INSERT INTO addresses VALUES (5000, 'es', 1, '{es}', NULL);
DELETE FROM addresses WHERE id < 10;
DELETE FROM countries WHERE code = 'es';
INSERT INTO events VALUES (clock_timestamp() + interval '0.1 s', 6);
