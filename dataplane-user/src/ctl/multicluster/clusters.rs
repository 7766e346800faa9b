//! The clusters a command is about.

use super::{Ended, Place};
use crate::multicluster::api::{self, Api};
use crate::multicluster::facts::Cluster;
use crate::multicluster::gather;

/// A cluster and the way to it.
pub(super) struct Known {
    pub(super) api: Api,
    pub(super) cluster: Cluster,
}

/// Reads the clusters of these contexts; all of the kubeconfig if none is named.
///
/// # Errors
/// The first one that cannot be read.
pub(super) async fn read(place: &Place, contexts: &[String]) -> Result<Vec<Known>, Ended> {
    let (known, mut silent) = read_each(place, contexts).await?;
    if silent.is_empty() { Ok(known) } else { Err(Ended::Failed(silent.swap_remove(0).1)) }
}

/// As [`read`]; those that cannot be read are named, with the reason.
///
/// # Errors
/// The contexts cannot be meant.
pub(super) async fn read_each(
    place: &Place,
    contexts: &[String],
) -> Result<(Vec<Known>, Vec<(String, String)>), Ended> {
    let config = api::kubeconfig(&place.kubeconfig).map_err(Ended::Usage)?;
    let all: Vec<String> = config.contexts.iter().map(|context| context.name.clone()).collect();
    let wanted = if contexts.is_empty() { &all } else { contexts };
    if wanted.is_empty() {
        return Err(Ended::Usage("the kubeconfig holds no context".to_owned()));
    }
    if let Some(twice) =
        wanted.iter().enumerate().find(|(at, name)| wanted.iter().take(*at).any(|known| known == *name))
    {
        return Err(Ended::Usage(format!("context {:?} is named twice; a cluster is not linked to itself", twice.1)));
    }
    let mut apis = Vec::new();
    for context in wanted {
        apis.push(Api::of(&config, context).await.map_err(Ended::Usage)?);
    }
    let (mut known, mut silent) = (Vec::new(), Vec::new());
    for api in apis {
        match gather::cluster(&api, &place.istio_namespace, &place.gateway_namespace).await {
            Ok(cluster) => known.push(Known { api, cluster }),
            Err(why) => silent.push((api.context, why)),
        }
    }
    Ok((known, silent))
}
