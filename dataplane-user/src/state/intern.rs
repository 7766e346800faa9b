//! One allocation for equal texts: a mesh repeats its namespaces, nodes and service names a hundred thousand times.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::{GatewayRef, Locality, Ports};
use crate::identity::{SpiffeError, SpiffeId};

/// Texts known at the time of the first sweep.
const FIRST_SWEEP: usize = 4096;

/// Trust domain, namespace and service account.
type IdentityParts = (Arc<str>, Arc<str>, Arc<str>);

/// Shares equal values; forgets those that nobody else uses once its size has doubled.
#[derive(Debug, Default)]
pub struct Intern {
    texts: HashSet<Arc<str>>,
    ports: HashSet<Ports>,
    gateways: HashSet<Arc<GatewayRef>>,
    localities: HashSet<Locality>,
    identities: HashMap<IdentityParts, SpiffeId>,
    sweep_at: usize,
}

impl Intern {
    /// The shared copy of a text.
    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let shared: Arc<str> = text.into();
        self.texts.insert(shared.clone());
        shared
    }

    /// The shared copy of a mapping of ports.
    pub fn ports(&mut self, ports: BTreeMap<u16, u16>) -> Ports {
        let ports = Ports::from(ports);
        if let Some(known) = self.ports.get(&ports) {
            return known.clone();
        }
        self.ports.insert(ports.clone());
        ports
    }

    /// The shared copy of a reference.
    pub fn gateway(&mut self, gateway: GatewayRef) -> Arc<GatewayRef> {
        if let Some(known) = self.gateways.get(&gateway) {
            return known.clone();
        }
        let shared = Arc::new(gateway);
        self.gateways.insert(shared.clone());
        shared
    }

    /// The shared copy of a locality.
    pub fn locality(&mut self, region: &str, zone: &str, subzone: &str) -> Locality {
        let locality = Locality::new(self.text(region), self.text(zone), self.text(subzone));
        if let Some(known) = self.localities.get(&locality) {
            return known.clone();
        }
        self.localities.insert(locality.clone());
        locality
    }

    /// The shared copy of an identity.
    ///
    /// # Errors
    /// If the parts make none.
    pub fn identity(
        &mut self,
        trust_domain: &Arc<str>,
        namespace: &Arc<str>,
        service_account: &Arc<str>,
    ) -> Result<SpiffeId, SpiffeError> {
        let parts = (trust_domain.clone(), namespace.clone(), service_account.clone());
        if let Some(known) = self.identities.get(&parts) {
            return Ok(known.clone());
        }
        let identity = SpiffeId::new(trust_domain, namespace, service_account)?;
        self.identities.insert(parts, identity.clone());
        Ok(identity)
    }

    /// Forgets what nobody uses any more, if enough has gathered to be worth the look.
    pub fn tidy(&mut self) {
        let held = self.texts.len() + self.ports.len() + self.gateways.len() + self.identities.len();
        if held < self.sweep_at.max(FIRST_SWEEP) {
            return;
        }
        self.localities.retain(Locality::is_shared);
        self.identities.retain(|_, identity| identity.is_shared());
        self.gateways.retain(|gateway| Arc::strong_count(gateway) > 1);
        self.ports.retain(|ports| Arc::strong_count(ports.allocation()) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.texts.shrink_to(self.texts.len() * 2);
        self.sweep_at = 2 * (self.texts.len() + self.ports.len() + self.gateways.len() + self.identities.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_and_unused_ones_are_forgotten() {
        let mut intern = Intern::default();
        let kept = intern.text("kept");
        assert!(Arc::ptr_eq(&kept, &intern.text("kept")));
        for number in 0..2 * FIRST_SWEEP {
            intern.text(&format!("text {number}"));
        }
        intern.tidy();
        assert_eq!(intern.texts.len(), 1);
        assert!(Arc::ptr_eq(&kept, &intern.text("kept")));
    }
}
