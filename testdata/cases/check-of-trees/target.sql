INSERT INTO visits VALUES (148, now() - interval '1.9 s', 'long');
UPDATE visits SET at = now() - interval '1.9 s', note = 'long' WHERE id = 99;
INSERT INTO child (id, v, extra) VALUES (1000, 1, current_user);
INSERT INTO grandchild (id, v, extra) VALUES (1001, 1, current_user);
UPDATE grandchild SET v = 3 WHERE id = 62 AND extra = current_user;
VACUUM FULL visits_1;
VACUUM FULL grandchild;
