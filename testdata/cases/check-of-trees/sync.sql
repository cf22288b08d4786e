VACUUM FULL visits_1;
INSERT INTO visits VALUES (149, now() - interval '1.9 s', 'long');
DELETE FROM visits WHERE id = 51;
VACUUM FULL grandchild;
UPDATE parent SET v = v + 1 WHERE id < 5;
