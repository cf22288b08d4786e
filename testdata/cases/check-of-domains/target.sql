INSERT INTO countries VALUES ('it');
INSERT INTO addresses VALUES (6000, 'it', 1, '{it}', ROW ('it', 4)::place);
DELETE FROM countries WHERE code = 'it';
INSERT INTO events VALUES (clock_timestamp() + interval '0.1 s', 7);
VACUUM FULL addresses;
SET app.scores = 'on';
UPDATE events SET s = 8 WHERE s = 6;
