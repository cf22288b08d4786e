package herokuapp_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/herokuapp"
)

func TestCommands(t *testing.T) {
	t.Parallel()
	require.Equal(t, herokuapp.Lists{
		Before: []string{"heroku addons:attach postgresql-cubic-12345 --as MIGRATOR_OLD_DATABASE -a shop"},
		Switch: []string{
			"heroku maintenance:on -a shop",
			"heroku addons:detach DATABASE -a shop",
			`heroku config:set DATABASE_URL="$APP_DATABASE_URL" -a shop`,
			"heroku ps:wait -a shop",
			"heroku maintenance:off -a shop",
		},
		Revert: []string{
			"heroku maintenance:on -a shop",
			"heroku config:unset DATABASE_URL -a shop",
			"heroku addons:attach postgresql-cubic-12345 --as DATABASE -a shop",
			"heroku addons:detach MIGRATOR_OLD_DATABASE -a shop",
			"heroku ps:wait -a shop",
			"heroku maintenance:off -a shop",
		},
	}, herokuapp.Commands(herokuapp.Setup{App: "shop", Owner: herokuapp.Owner{Addon: "postgresql-cubic-12345"}}))

	require.Equal(t, herokuapp.Lists{
		Before: []string{`heroku config:set MIGRATOR_OLD_MAIN_DB="$(heroku config:get MAIN_DB -a your-app)" -a your-app`},
		Switch: []string{`heroku config:set MAIN_DB='postgres://u:it'\''s@h:6432/d?a=b&c=d' -a your-app`, "heroku ps:wait -a your-app"},
		Revert: []string{
			`heroku config:set MAIN_DB="$(heroku config:get MIGRATOR_OLD_MAIN_DB -a your-app)" -a your-app`,
			"heroku config:unset MIGRATOR_OLD_MAIN_DB -a your-app",
			"heroku ps:wait -a your-app",
		},
		Complete: []string{"heroku config:unset MIGRATOR_OLD_MAIN_DB -a your-app"},
	}, herokuapp.Commands(herokuapp.Setup{Var: "MAIN_DB", URL: "postgres://u:it's@h:6432/d?a=b&c=d", NoMaintenance: true}))

	for namespace, command := range map[string]string{
		"credential:writer":          "heroku addons:attach db --as MIGRATOR_OLD_DATABASE --credential writer -a your-app",
		"connection-pooling:default": "heroku pg:connection-pooling:attach db --as MIGRATOR_OLD_DATABASE -a your-app",
		"connection-pooling:writer":  "heroku pg:connection-pooling:attach db --as MIGRATOR_OLD_DATABASE --credential writer -a your-app",
	} {
		require.Equal(t, []string{command}, herokuapp.Commands(herokuapp.Setup{Owner: herokuapp.Owner{Addon: "db", Namespace: namespace}}).Before)
	}
}
